//! Writes docs/cli.md from the command line's own tree, and fails when the page has fallen behind it.

use std::fmt::Write;
use std::path::Path;

use clap::{Command, CommandFactory};

use crate::cli::Cli;

/// The width of help texts in the page.
const PAGE_COLUMNS: usize = 100;

fn manual() -> String {
    let mut root = Cli::command().term_width(PAGE_COLUMNS);
    root.build();
    let mut text = "# The knarr command\n\n\
        <!-- Written by a test of knarr-cli from the definitions in crates/cli/src; do not edit. -->\n"
        .to_owned();
    chapter(&mut text, &mut root, 2);
    let names: Vec<String> = root.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for name in names {
        let Some(command) = root.find_subcommand_mut(&name) else { continue };
        chapter(&mut text, command, 2);
        let inner: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        for name in inner {
            if let Some(command) = command.find_subcommand_mut(&name) {
                chapter(&mut text, command, 3);
            }
        }
    }
    text
}

fn chapter(text: &mut String, command: &mut Command, level: usize) {
    let title = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let help = command.render_help().to_string();
    let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    let _ = write!(text, "\n{} {title}\n\n```text\n{}\n```\n", "#".repeat(level), help.join("\n"));
}

#[test]
fn the_manual_page_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let manual = manual();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &manual).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == manual, "docs/cli.md is out of date: run the tests once with UPDATE_DOCS=1");
}

#[test]
fn every_command_has_its_chapter() {
    let manual = manual();
    for command in Cli::command().get_subcommands() {
        assert!(manual.contains(&format!("\n## knarr {}\n", command.get_name())), "{}", command.get_name());
    }
    assert!(manual.contains("\n### knarr config check\n"));
}
