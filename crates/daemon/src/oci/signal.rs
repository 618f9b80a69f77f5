//! Linux' signal numbers by name, as images and people write them.

/// The first real-time signal that programs may use: 32 and 33 belong to the C library.
pub const SIGRTMIN: u8 = 34;
/// The last signal.
pub const SIGRTMAX: u8 = 64;
/// Asks a container to stop when neither the request nor the image names a signal.
pub const SIGTERM: u8 = 15;

/// Every classic signal without "SIG", with its number on every architecture that Kubernetes runs on but MIPS. Where
/// two names share a number the first is the one that is reported.
pub const CLASSIC: [(&str, u8); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// What an image's StopSignal or a person writes: "SIGTERM", "term", "15", "SIGRTMIN+3", "RTMAX-1".
pub fn parse(text: &str) -> Option<u8> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|number| (1..=SIGRTMAX).contains(number));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse::<u8>().ok()? };
        return SIGRTMIN.checked_add(offset).filter(|number| *number <= SIGRTMAX);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse::<u8>().ok()? };
        return SIGRTMAX.checked_sub(offset).filter(|number| *number >= SIGRTMIN);
    }
    CLASSIC.iter().find(|(classic, _)| *classic == name).map(|(_, number)| *number)
}

/// The signal that asks a container to stop: the request's, else the image's if it can be read, else SIGTERM.
pub fn stop_signal(requested: Option<u8>, of_image: &str) -> u8 {
    requested.or_else(|| parse(of_image)).unwrap_or(SIGTERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_write_signals_in_many_ways() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("SIGQUIT", Some(3)),
            ("3", Some(3)),
            ("37", Some(37)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX", Some(64)),
            ("SIGRTMAX-14", Some(50)),
            ("SIGRTMAX-31", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN3", None),
            ("0", None),
            ("65", None),
            ("", None),
            ("SIG", None),
            ("-9", None),
            ("SIGNOPE", None),
        ] {
            assert_eq!(parse(text), number, "{text:?}");
        }
    }

    #[test]
    fn the_request_wins_over_the_image_and_sigterm_is_left() {
        assert_eq!(stop_signal(Some(2), "SIGQUIT"), 2);
        assert_eq!(stop_signal(None, "SIGQUIT"), 3);
        assert_eq!(stop_signal(None, "nonsense"), 15);
        assert_eq!(stop_signal(None, ""), 15);
    }
}
