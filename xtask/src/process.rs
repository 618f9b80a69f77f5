//! Running other programs: say what is run, run it in the source tree, turn failure into words.

use std::process::{Command, Stdio};

/// The cargo that runs us, or the one in PATH.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Prints the command and runs it with our own output.
pub fn run(program: &str, args: &[&str]) -> Result<(), String> {
    run_with_env(program, args, &[])
}

/// The same with additions to the environment.
pub fn run_with_env(program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
    eprintln!("+ {} {}", short(program), args.join(" "));
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().copied()).current_dir(crate::root());
    let status = command.status().map_err(|e| format!("cannot run {program}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{} {}: {status}", short(program), args.join(" "))) }
}

/// Prints the command and runs it; what it says is shown only if it fails.
pub fn run_quietly(program: &str, args: &[&str]) -> Result<(), String> {
    eprintln!("+ {} {}", short(program), args.join(" "));
    let output = Command::new(program).args(args).current_dir(crate::root()).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("cannot run {program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{} {}: {}\n{}", short(program), args.join(" "), output.status, String::from_utf8_lossy(&said)))
}

/// What the command prints, without its last newline.
pub fn output(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args).current_dir(crate::root()).stderr(Stdio::inherit());
    let output = command.output().map_err(|e| format!("cannot run {program}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{} {}: {}", short(program), args.join(" "), output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    output("id", &["-u"]).is_ok_and(|id| id == "0")
}

fn short(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}
