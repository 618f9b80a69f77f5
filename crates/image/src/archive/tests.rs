//! Archives in and out, good and hostile.
