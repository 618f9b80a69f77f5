//! Our client and clients that misbehave, against our server, over loopback.

mod command;
mod http;
mod raw;
mod support;
