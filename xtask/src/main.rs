//! Development tasks, one subcommand each; `cargo xtask help` lists them.
//! Nothing here is part of the product.

mod codegen;

use std::process::ExitCode;

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let outcome = match task.as_str() {
        "codegen" => codegen::run(),
        _ => Err(format!("unknown task {task:?}; there is: codegen")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask {task}: {message}");
            ExitCode::FAILURE
        }
    }
}
