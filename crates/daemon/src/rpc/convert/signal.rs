//! CRI's signal names, Linux' signal numbers, and what image configurations write for them.

use knarr_cri_api::v1::Signal;

/// CRI's first real-time signal is Linux' 34: 32 and 33 belong to the C library.
const SIGRTMIN: u8 = 34;
/// Linux' last signal.
const SIGRTMAX: u8 = 64;

/// Every classic signal: CRI's name, Linux' number on every architecture that Kubernetes runs on but MIPS. Where two
/// names share a number the first is the one that is reported.
const CLASSIC: [(Signal, u8); 34] = [
    (Signal::Sighup, 1),
    (Signal::Sigint, 2),
    (Signal::Sigquit, 3),
    (Signal::Sigill, 4),
    (Signal::Sigtrap, 5),
    (Signal::Sigabrt, 6),
    (Signal::Sigiot, 6),
    (Signal::Sigbus, 7),
    (Signal::Sigfpe, 8),
    (Signal::Sigkill, 9),
    (Signal::Sigusr1, 10),
    (Signal::Sigsegv, 11),
    (Signal::Sigusr2, 12),
    (Signal::Sigpipe, 13),
    (Signal::Sigalrm, 14),
    (Signal::Sigterm, 15),
    (Signal::Sigstkflt, 16),
    (Signal::Sigchld, 17),
    (Signal::Sigcld, 17),
    (Signal::Sigcont, 18),
    (Signal::Sigstop, 19),
    (Signal::Sigtstp, 20),
    (Signal::Sigttin, 21),
    (Signal::Sigttou, 22),
    (Signal::Sigurg, 23),
    (Signal::Sigxcpu, 24),
    (Signal::Sigxfsz, 25),
    (Signal::Sigvtalrm, 26),
    (Signal::Sigprof, 27),
    (Signal::Sigwinch, 28),
    (Signal::Sigio, 29),
    (Signal::Sigpoll, 29),
    (Signal::Sigpwr, 30),
    (Signal::Sigsys, 31),
];

/// The Linux number of a signal of CRI; `None` for RUNTIME_DEFAULT and for numbers that CRI does not have.
pub fn signal_from_cri(signal: i32) -> Option<u8> {
    let signal = Signal::try_from(signal).ok()?;
    if let Some((_, number)) = CLASSIC.iter().find(|(name, _)| *name == signal) {
        return Some(*number);
    }
    // SIGRTMIN..SIGRTMAX stand in one unbroken row in both numberings.
    let offset = u8::try_from(signal as i32 - Signal::Sigrtmin as i32).ok()?;
    (offset <= SIGRTMAX - SIGRTMIN).then_some(SIGRTMIN + offset)
}

/// CRI's name of a Linux signal; RUNTIME_DEFAULT for what has none.
pub fn signal_to_cri(number: u8) -> Signal {
    if let Some((name, _)) = CLASSIC.iter().find(|(_, n)| *n == number) {
        return *name;
    }
    let offset = number.checked_sub(SIGRTMIN).filter(|_| number <= SIGRTMAX);
    offset
        .and_then(|offset| Signal::try_from(Signal::Sigrtmin as i32 + i32::from(offset)).ok())
        .unwrap_or(Signal::RuntimeDefault)
}

/// What an image's StopSignal or a person writes: "SIGTERM", "term", "15", "SIGRTMIN+3", "RTMAX-1".
pub(crate) fn parse_signal(text: &str) -> Option<u8> {
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
    CLASSIC.iter().find(|(signal, _)| signal.as_str_name().strip_prefix("SIG") == Some(name)).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_cri_has_a_linux_number_and_comes_back_as_an_equal_one() {
        assert_eq!(signal_from_cri(Signal::RuntimeDefault as i32), None);
        for raw in 1..=65 {
            let number = signal_from_cri(raw).unwrap_or_else(|| panic!("signal {raw} of CRI"));
            assert!((1..=64).contains(&number), "{raw} -> {number}");
            let back = signal_to_cri(number);
            assert_eq!(signal_from_cri(back as i32), Some(number), "{raw}");
        }
        assert_eq!(signal_from_cri(66), None);
        assert_eq!(signal_from_cri(-1), None);
        assert_eq!(signal_from_cri(23), Some(15), "SIGTERM");
        assert_eq!(signal_from_cri(13), Some(9), "SIGKILL");
        assert_eq!(signal_from_cri(35), Some(34), "SIGRTMIN");
        assert_eq!(signal_from_cri(50), Some(49), "SIGRTMIN+15");
        assert_eq!(signal_from_cri(51), Some(50), "SIGRTMAX-14");
        assert_eq!(signal_from_cri(65), Some(64), "SIGRTMAX");
    }

    #[test]
    fn numbers_without_a_name_in_cri_are_the_default() {
        for number in [0, 32, 33, 65, 255] {
            assert_eq!(signal_to_cri(number), Signal::RuntimeDefault, "{number}");
        }
    }

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
            assert_eq!(parse_signal(text), number, "{text:?}");
        }
    }
}
