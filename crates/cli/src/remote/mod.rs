//! Streams of exec, attach and port-forward at this end: what a person's terminal, files and sockets have to do with
//! them. How the bytes travel is `knarr_streaming`'s.

pub mod command;
pub mod detach;
pub mod forward;
pub mod listen;
mod stdio;
pub mod target;
