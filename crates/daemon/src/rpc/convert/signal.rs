//! CRI's signals and Linux' numbers.

use crate::oci::signal::{CLASSIC, SIGRTMAX, SIGRTMIN};
use knarr_cri_api::v1::Signal;

/// The Linux number of a signal of CRI; `None` for RUNTIME_DEFAULT and for numbers that CRI does not have.
pub fn signal_from_cri(raw: i32) -> Option<u8> {
    let signal = Signal::try_from(raw).ok()?;
    let name = signal.as_str_name().strip_prefix("SIG")?;
    if let Some((_, number)) = CLASSIC.iter().find(|(classic, _)| *classic == name) {
        return Some(*number);
    }
    // SIGRTMIN..SIGRTMAX stand in one unbroken row in both numberings.
    let offset = u8::try_from(raw - Signal::Sigrtmin as i32).ok()?;
    (offset <= SIGRTMAX - SIGRTMIN).then_some(SIGRTMIN + offset)
}

/// CRI's name of a Linux signal; RUNTIME_DEFAULT for what has none.
pub fn signal_to_cri(number: u8) -> Signal {
    let classic = CLASSIC.iter().find(|(_, n)| *n == number);
    let real_time = || {
        let offset = number.checked_sub(SIGRTMIN).filter(|_| number <= SIGRTMAX)?;
        Signal::try_from(Signal::Sigrtmin as i32 + i32::from(offset)).ok()
    };
    classic
        .and_then(|(name, _)| Signal::from_str_name(&format!("SIG{name}")))
        .or_else(real_time)
        .unwrap_or(Signal::RuntimeDefault)
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
}
