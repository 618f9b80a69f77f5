//! CARRIES. The streams of exec, attach and port-forward over an upgraded HTTP connection (SPDY/3.1 or WebSocket), for
//! the server's end and for the client's. It knows neither pods nor processes: what a session does is a closure of the
//! daemon, what a terminal does is the command line's.
//!
//! ```text
//!  server/http, client/connect   a connection is upgraded
//!  mux                           drives it: one task, one read buffer, one vectored write
//!  protocol, websocket           bytes <-> events of streams (codecs are in knarr-wire)
//!  stream, shared, session       two bounded queues for each stream, and the handles on them
//!  server/, client/              what the streams of a command or a forwarded port are
//! ```

pub mod client;
mod io;
mod mux;
mod outgoing;
mod protocol;
pub mod server;
mod session;
mod shared;
mod stream;
mod websocket;

pub use knarr_wire::remotecommand::{CommandEnd, TerminalSize};
pub use session::{Gone, Receiver, ResizeReceiver, ResizeSender, Sender, Wanted};

/// A boxed future, as closures return it.
pub type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'static>>;
