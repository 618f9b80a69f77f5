//! Whether and how to colour. Colour only underlines what the words already say.

use std::io::IsTerminal;

use clap::ValueEnum;

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Even into a file.
    Always,
    /// Not at all.
    Never,
}

/// What a colour stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Runs, is ready.
    Good,
    /// Neither good nor bad, or not known.
    Odd,
    /// Failed.
    Bad,
    /// Stands back.
    Dim,
    /// One of several sources, told apart by number.
    Source(usize),
}

/// The decision, made once for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    coloured: bool,
}

impl Style {
    /// Decides for standard output.
    pub fn of_stdout(when: When) -> Self {
        Self::decide(when, std::env::var_os("NO_COLOR").as_deref(), std::io::stdout().is_terminal())
    }

    /// Decides for standard error.
    pub fn of_stderr(when: When) -> Self {
        Self::decide(when, std::env::var_os("NO_COLOR").as_deref(), std::io::stderr().is_terminal())
    }

    fn decide(when: When, no_color: Option<&std::ffi::OsStr>, terminal: bool) -> Self {
        let forbidden = no_color.is_some_and(|value| !value.is_empty());
        let coloured = match when {
            When::Always => true,
            When::Never => false,
            When::Auto => terminal && !forbidden,
        };
        Self { coloured }
    }

    /// The text in the tone's colour.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.coloured || text.is_empty() {
            return text.to_owned();
        }
        /// Cyan, yellow, green, magenta, blue, red: told apart on dark and light grounds.
        const SOURCES: [u8; 6] = [36, 33, 32, 35, 34, 31];
        let code = match tone {
            Tone::Good => 32,
            Tone::Odd => 33,
            Tone::Bad => 31,
            Tone::Dim => 2,
            Tone::Source(number) => SOURCES[number % SOURCES.len()],
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn colours_need_a_terminal_and_no_objection() {
        let coloured =
            |when, no_color: Option<&str>, terminal| Style::decide(when, no_color.map(OsStr::new), terminal).coloured;
        assert!(coloured(When::Auto, None, true));
        assert!(coloured(When::Auto, Some(""), true));
        assert!(!coloured(When::Auto, Some("1"), true));
        assert!(!coloured(When::Auto, None, false));
        assert!(coloured(When::Always, Some("1"), false));
        assert!(!coloured(When::Never, None, true));
    }

    #[test]
    fn without_colour_text_stays_as_it_is() {
        let plain = Style { coloured: false };
        assert_eq!(plain.paint(Tone::Bad, "x"), "x");
        let coloured = Style { coloured: true };
        assert_eq!(coloured.paint(Tone::Good, "x"), "\u{1b}[32mx\u{1b}[0m");
    }
}
