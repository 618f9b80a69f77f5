//! Our client and clients that misbehave, against our server, over loopback.

mod client;
mod command;
mod hostile;
mod http;
mod inside;
mod port_forward;
mod raw;
mod reset;
mod support;
mod tls;
mod versions;
mod websocket;
