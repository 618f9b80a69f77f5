//! `knarr completion`: completions for shells.

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::generate;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output::print;

/// Options of `completion`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr completion bash > /usr/share/bash-completion/completions/knarr
  knarr completion zsh > /usr/share/zsh/site-functions/_knarr
  knarr completion fish > ~/.config/fish/completions/knarr.fish")]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Prints the script.
pub fn run(args: &CompletionArgs) -> Result<(), Failure> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "knarr", &mut script);
    print(&String::from_utf8_lossy(&script))
}
