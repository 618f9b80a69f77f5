//! What a new daemon makes of what an earlier one left.
