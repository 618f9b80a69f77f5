//! Shows how far a pull or an import is: bars on a terminal, lines elsewhere, nothing where quiet is asked for.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use knarr_cri_api::knarr::{BlobProgress, Progress};

use super::{human, say};
use crate::failure::printable;

/// How much of a digest is shown, as docker and podman do.
const DIGEST_DIGITS: usize = 12;

/// How often a bar's spinner turns while no message comes.
const SPIN: Duration = Duration::from_millis(120);

/// More bars than a terminal has lines only flicker; the rest is counted in the first line.
const BARS_MAX: usize = 24;

/// Shows one operation's progress on standard error.
pub struct Reporter {
    subject: String,
    form: Form,
}

enum Form {
    Quiet,
    Lines { step: String, states: HashMap<String, String> },
    Bars { all: MultiProgress, head: ProgressBar, blobs: HashMap<String, ProgressBar> },
}

impl Reporter {
    /// A reporter about `subject`, an image or a file.
    pub fn new(subject: &str, quiet: bool) -> Self {
        let form = if quiet {
            Form::Quiet
        } else if std::io::stderr().is_terminal() {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            let head = all.add(ProgressBar::new_spinner());
            head.enable_steady_tick(SPIN);
            head.set_message(printable(subject));
            Form::Bars { all, head, blobs: HashMap::new() }
        } else {
            Form::Lines { step: String::new(), states: HashMap::new() }
        };
        Self { subject: printable(subject), form }
    }

    /// Shows what a message says.
    pub fn update(&mut self, progress: &Progress) {
        match &mut self.form {
            Form::Quiet => {}
            Form::Lines { step, states } => {
                for line in lines_of(progress, step, states) {
                    say(&format!("{}: {line}", self.subject));
                }
            }
            Form::Bars { all, head, blobs } => {
                if !progress.step.is_empty() {
                    head.set_message(format!("{}: {}", self.subject, printable(&progress.step)));
                }
                for blob in &progress.blobs {
                    if !blobs.contains_key(&blob.digest) && blobs.len() >= BARS_MAX {
                        continue;
                    }
                    let bar = blobs.entry(blob.digest.clone()).or_insert_with(|| new_bar(all, blob));
                    show(bar, blob);
                }
            }
        }
    }

    /// Takes the bars away; the answer is printed by the caller.
    pub fn finish(self) {
        if let Form::Bars { all, head, blobs } = self.form {
            for bar in blobs.values().chain([&head]) {
                bar.finish_and_clear();
            }
            let _ = all.clear();
        }
    }
}

fn new_bar(all: &MultiProgress, blob: &BlobProgress) -> ProgressBar {
    let bar = all.add(ProgressBar::new(blob.total_bytes));
    // The templates are constants; a mistake in one falls back to the library's own.
    if let Ok(style) = ProgressStyle::with_template("  {prefix} {bar:30} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(short_digest(&blob.digest));
    bar
}

fn show(bar: &ProgressBar, blob: &BlobProgress) {
    bar.set_length(blob.total_bytes.max(blob.done_bytes));
    bar.set_position(blob.done_bytes);
    bar.set_message(describe(blob));
    if is_done(blob) {
        bar.abandon();
    }
}

fn is_done(blob: &BlobProgress) -> bool {
    matches!(blob.state.as_str(), "done" | "present")
}

fn describe(blob: &BlobProgress) -> String {
    let state = printable(&blob.state);
    match (blob.state.as_str(), blob.total_bytes) {
        ("downloading", 0) => human::size(blob.done_bytes),
        ("downloading", total) => format!("{}/{}", human::size(blob.done_bytes), human::size(total)),
        ("done", _) => format!("done {}", human::size(blob.total_bytes.max(blob.done_bytes))),
        _ => state,
    }
}

fn short_digest(digest: &str) -> String {
    let digits = digest.split_once(':').map_or(digest, |(_, digits)| digits);
    digits.chars().take(DIGEST_DIGITS).collect()
}

/// What is new in a message: a step that begins, a blob that is done. Bytes on their way are not worth a line of a log.
fn lines_of(progress: &Progress, step: &mut String, states: &mut HashMap<String, String>) -> Vec<String> {
    let mut lines = Vec::new();
    if !progress.step.is_empty() && progress.step != *step {
        step.clone_from(&progress.step);
        lines.push(printable(step));
    }
    for blob in &progress.blobs {
        let before = states.insert(blob.digest.clone(), blob.state.clone());
        if before.as_ref() != Some(&blob.state) && is_done(blob) {
            lines.push(format!("{} {}", short_digest(&blob.digest), describe(blob)));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(state: &str, done_bytes: u64, total_bytes: u64) -> BlobProgress {
        BlobProgress { digest: "sha256:0123456789abcdef".into(), done_bytes, total_bytes, state: state.into() }
    }

    #[test]
    fn a_log_gets_a_line_for_each_step_and_each_finished_blob() {
        let (mut step, mut states) = (String::new(), HashMap::new());
        let mut told = Vec::new();
        for (name, blob) in [
            ("resolving", None),
            ("pulling layers", Some(blob("downloading", 1, 2_000))),
            ("pulling layers", Some(blob("downloading", 2_000, 2_000))),
            ("pulling layers", Some(blob("done", 2_000, 2_000))),
            ("pulling layers", Some(blob("done", 2_000, 2_000))),
        ] {
            let progress = Progress { step: name.into(), blobs: blob.into_iter().collect(), ..Progress::default() };
            told.extend(lines_of(&progress, &mut step, &mut states));
        }
        assert_eq!(told, ["resolving", "pulling layers", "0123456789ab done 2.00kB"]);
    }

    #[test]
    fn a_blob_is_described_by_what_is_known_of_it() {
        assert_eq!(describe(&blob("downloading", 500, 0)), "500B");
        assert_eq!(describe(&blob("downloading", 500, 1_000)), "500B/1.00kB");
        assert_eq!(describe(&blob("waiting", 0, 0)), "waiting");
    }
}
