//! Which of an index' images fits.
