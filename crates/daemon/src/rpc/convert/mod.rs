//! CRI messages to specs, and views to CRI messages.
