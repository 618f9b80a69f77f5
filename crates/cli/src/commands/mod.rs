//! One file for each command: its options, its examples and what it does.

pub mod attach;
pub mod completion;
pub mod config;
pub mod create;
pub mod exec;
pub mod export;
pub mod images;
pub mod import;
pub mod info;
pub mod inspect;
pub mod logs;
pub mod pods;
pub mod port_forward;
pub mod ps;
pub mod pull;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod serve;
pub mod start;
pub mod stop;
pub mod version;
