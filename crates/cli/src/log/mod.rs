//! Reading containers' log files, as kubelet and crictl do: the runtime writes them, whoever may read them reads them.

mod file;
mod line;
mod printer;

pub use file::LogFile;
pub use printer::{Printer, Selection};
