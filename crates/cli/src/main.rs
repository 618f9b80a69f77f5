//! SHOWS. The `knarr` command: the daemon as `knarr serve`, and everything that a person asks of it.
//!
//! What it shows of pods it reads over public CRI, so it works against any CRI runtime; only pulls with progress and
//! archives of images use knarr's own calls. It keeps no state but the files of the pods that `knarr run` made.

mod cli;
mod client;
mod commands;
mod credentials;
mod endpoint;
mod failure;
mod fan_out;
mod filter;
mod image_pull;
mod log;
mod lookup;
mod machine;
mod output;
mod pod_files;
mod pod_manifest;
mod pod_run;
mod remote;
mod session;
mod signals;
mod teardown;
mod terminal;

#[cfg(test)]
mod manual;

use std::future::Future;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use failure::{EXIT_OK, Failure};
use output::say;
use output::style::Tone;
use session::Session;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let session = match cli.session() {
        Ok(session) => session,
        Err(failure) => return report(&failure, None),
    };
    match run(cli.command, &session) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => report(&failure, Some(&session)),
    }
}

fn run(command: Command, session: &Session) -> Result<u8, Failure> {
    match command {
        Command::Serve(args) => commands::serve::run(&args, session).map(done),
        Command::Config(args) => commands::config::run(args, session).map(done),
        Command::Completion(args) => commands::completion::run(&args).map(done),
        Command::Run(args) => wait(commands::run::run(args, session)),
        Command::Exec(args) => wait(commands::exec::run(args, session)),
        Command::Attach(args) => wait(commands::attach::run(args, session)),
        Command::PortForward(args) => wait(commands::port_forward::run(args, session)),
        Command::Create(args) => wait(commands::create::run(args, session)).map(done),
        Command::Start(args) => wait(commands::start::run(args, session)).map(done),
        Command::Stop(args) => wait(commands::stop::run(args, session)).map(done),
        Command::Rm(args) => wait(commands::rm::run(args, session)).map(done),
        Command::Ps(args) => wait(commands::ps::run(args, session)).map(done),
        Command::Pods(args) => wait(commands::pods::run(args, session)).map(done),
        Command::Logs(args) => wait(commands::logs::run(args, session)).map(done),
        Command::Inspect(args) => wait(commands::inspect::run(args, session)).map(done),
        Command::Images(args) => wait(commands::images::run(args, session)).map(done),
        Command::Pull(args) => wait(commands::pull::run(args, session)).map(done),
        Command::Import(args) => wait(commands::import::run(args, session)).map(done),
        Command::Export(args) => wait(commands::export::run(args, session)).map(done),
        Command::Rmi(args) => wait(commands::rmi::run(args, session)).map(done),
        Command::Info(args) => wait(commands::info::run(args, session)).map(done),
        Command::Version(args) => wait(commands::version::run(args, session)).map(done),
    }
}

fn done((): ()) -> u8 {
    EXIT_OK
}

/// One thread is enough for a client. Blocking reads that never end, as of standard input, must not keep the process.
fn wait<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::io("start", &error))?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

fn report(failure: &Failure, session: Option<&Session>) -> ExitCode {
    let message = failure::printable(&failure.to_string());
    if !message.is_empty() {
        let style = session.map(Session::stderr_style);
        let paint = |tone, word: &str| style.map_or_else(|| word.to_owned(), |style| style.paint(tone, word));
        say(&format!("{} {message}", paint(Tone::Bad, "error:")));
        if let Some(hint) = failure.hint() {
            say(&format!("{} {hint}", paint(Tone::Dim, "hint:")));
        }
    }
    ExitCode::from(failure.exit_code())
}
