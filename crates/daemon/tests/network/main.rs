//! The network on a real kernel: namespaces, links, rules and real CNI plugins. Each test has a host of its own.

mod builtin;
mod cni;
mod laboratory;
mod recovery;
