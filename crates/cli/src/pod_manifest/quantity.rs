//! Kubernetes' quantities: "500m", "1.5Gi", "2e3". Exact arithmetic, rounded up as Kubernetes rounds.

use std::str::FromStr;

/// A quantity in thousand-millionths of its unit, the finest that Kubernetes knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    nano: i128,
}

const NANO: i128 = 1_000_000_000;

/// Kubernetes caps quantities at the largest signed 64-bit number.
const MAX_NANO: i128 = i64::MAX as i128 * NANO;

/// Decimal and binary suffixes with their factor as mantissa and power of ten.
const SUFFIXES: [(&str, i128, i32); 15] = [
    ("", 1, 0),
    ("n", 1, -9),
    ("u", 1, -6),
    ("m", 1, -3),
    ("k", 1, 3),
    ("M", 1, 6),
    ("G", 1, 9),
    ("T", 1, 12),
    ("P", 1, 15),
    ("E", 1, 18),
    ("Ki", 1 << 10, 0),
    ("Mi", 1 << 20, 0),
    ("Gi", 1 << 30, 0),
    ("Ti", 1 << 40, 0),
    ("Pi", 1 << 50, 0),
];
const EXBI: i128 = 1 << 60;

/// More digits than any quantity needs; within it nothing here overflows 128 bits before it is capped.
const MAX_DIGITS: usize = 36;

impl Quantity {
    /// A whole number of units.
    pub const fn whole(value: i64) -> Self {
        Self { nano: value as i128 * NANO }
    }

    /// In whole units, rounded up.
    pub fn value(self) -> i64 {
        self.divided(NANO)
    }

    /// In thousandths, rounded up.
    pub fn milli_value(self) -> i64 {
        self.divided(NANO / 1_000)
    }

    fn divided(self, by: i128) -> i64 {
        let quotient = self.nano.div_euclid(by) + i128::from(self.nano.rem_euclid(by) != 0);
        i64::try_from(quotient).unwrap_or(if quotient < 0 { i64::MIN } else { i64::MAX })
    }

    /// How many `divisor`s it takes, rounded up: what `resourceFieldRef` asks for.
    pub fn in_units_of(self, divisor: Self) -> i64 {
        if divisor.nano <= 0 { self.value() } else { self.divided(divisor.nano) }
    }

    /// Below zero?
    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// Nothing?
    pub fn is_zero(self) -> bool {
        self.nano == 0
    }
}

impl FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no quantity: write for example 500m, 0.5, 128Mi or 1G");
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || fraction.contains('.') || digits.len() > MAX_DIGITS {
            return Err(bad());
        }
        let mantissa: i128 = digits.parse().map_err(|_| bad())?;
        let (factor, power) = suffix_factor(suffix).ok_or_else(bad)?;
        let power = power - i32::try_from(fraction.len()).map_err(|_| bad())? + 9;
        let nano = scaled(mantissa, factor, power);
        Ok(Self { nano: if negative { -nano } else { nano } })
    }
}

fn suffix_factor(suffix: &str) -> Option<(i128, i32)> {
    if let Some((_, factor, power)) = SUFFIXES.iter().find(|(name, ..)| *name == suffix) {
        return Some((*factor, *power));
    }
    if suffix == "Ei" {
        return Some((EXBI, 0));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let plain = !digits.is_empty() && digits.len() <= 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { Some((1, exponent.parse().ok()?)) } else { None }
}

/// mantissa × factor × 10^power, capped, and rounded up where digits are lost.
fn scaled(mantissa: i128, factor: i128, power: i32) -> i128 {
    let Some(mut value) = mantissa.checked_mul(factor) else { return MAX_NANO };
    for _ in 0..power.max(0) {
        value = match value.checked_mul(10) {
            Some(value) if value <= MAX_NANO => value,
            _ => return MAX_NANO,
        };
        if value == 0 {
            break;
        }
    }
    let mut lost = false;
    for _ in power..0 {
        lost |= value % 10 != 0;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    (value + i128::from(lost)).min(MAX_NANO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("0", 0),
            ("1", 1),
            ("+7", 7),
            ("-3", -3),
            (".5", 1),
            ("1.", 1),
            ("128Mi", 134_217_728),
            ("1.5Gi", 1_610_612_736),
            ("1G", 1_000_000_000),
            ("1k", 1_000),
            ("1e3", 1_000),
            ("1E3", 1_000),
            ("12E-1", 2),
            ("1E", 1_000_000_000_000_000_000),
            ("5Ei", 5 << 60),
            ("0.1Ki", 103),
            ("1500m", 2),
            ("1n", 1),
            ("9999E", i64::MAX),
            ("1e999", i64::MAX),
            ("0e999", 0),
            ("1e-999", 1),
            ("123456789012345678901234567890", i64::MAX),
        ] {
            assert_eq!(quantity(text).value(), value, "{text}");
        }
        for (text, milli) in [("500m", 500), ("0.5", 500), ("100u", 1), ("2", 2_000), ("0.0001", 1), ("1.0005", 1_001)]
        {
            assert_eq!(quantity(text).milli_value(), milli, "{text}");
        }
    }

    #[test]
    fn nonsense_is_no_quantity() {
        for bad in [
            "", "m", "-", "1 Gi", "1gi", "1K", "1ki", "1.2.3", "1e", "1e1.5", "0x10", "1_000", "one", "1MiB", "--1",
            "1e1234",
        ] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn equal_amounts_are_equal_however_written() {
        assert_eq!(quantity("0.5"), quantity("500m"));
        assert_eq!(quantity("1024Ki"), quantity("1Mi"));
        assert!(quantity("999m") < quantity("1"));
        assert_eq!(quantity("1Gi").in_units_of(quantity("1Mi")), 1_024);
        assert_eq!(quantity("1500m").in_units_of(quantity("1")), 2);
        assert!(quantity("-1").is_negative());
    }

    proptest! {
        #[test]
        fn any_text_is_a_quantity_or_an_error(text in "\\PC*") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn anything_shaped_like_a_quantity_is_read_without_overflow(text in "[+]?[0-9]{0,40}[.]?[0-9]{0,40}([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,4})?") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                prop_assert!(quantity.value() >= quantity.milli_value() / 1_000);
            }
        }

        #[test]
        fn decimals_are_rounded_up_and_never_by_more_than_one(whole in 0..1_000_000_i64, nanos in 0..1_000_000_000_i64) {
            let exact = quantity(&format!("{whole}.{nanos:09}"));
            prop_assert_eq!(exact.value(), whole + i64::from(nanos != 0));
            prop_assert_eq!(exact.milli_value(), whole * 1_000 + (nanos + 999_999) / 1_000_000);
        }
    }
}
