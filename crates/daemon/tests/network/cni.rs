//! CNI with Debian's plugins and with hostile ones.
