//! Control groups, v2 and v1: where they are, making and removing them, their files.
