//! Points in time as RFC 3339 writes them, without a library for calendars: the proleptic Gregorian one is forty lines.

use std::time::{SystemTime, UNIX_EPOCH};

const NANOS: i64 = 1_000_000_000;
const DAY_S: i64 = 86_400;

/// Nanoseconds since 1970 now; 0 on a clock that stands before it.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Reads "2024-02-29T13:00:00.5+01:00" as nanoseconds since 1970; `None` for anything else.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = rest.split_at_checked(8)?;
    let (year, month, day) = three_numbers(date, '-', [4, 2, 2])?;
    let (hour, minute, second) = three_numbers(clock, ':', [2, 2, 2])?;
    let (fraction_ns, zone) = parse_fraction(rest)?;
    let offset_s = parse_zone(zone)?;
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !in_range {
        return None;
    }
    let days = days_from_civil(year, month, day);
    let seconds = days * DAY_S + hour * 3600 + minute * 60 + second - offset_s;
    seconds.checked_mul(NANOS)?.checked_add(fraction_ns)
}

fn three_numbers(text: &str, separator: char, digits: [usize; 3]) -> Option<(i64, i64, i64)> {
    let mut parts = text.split(separator).zip(digits).map(|(part, digits)| number(part, digits));
    let found = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(found)
}

fn number(text: &str, digits: usize) -> Option<i64> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// ".5Z" is 500,000,000 and "Z". More than nine digits are cut.
fn parse_fraction(text: &str) -> Option<(i64, &str)> {
    let Some(rest) = text.strip_prefix('.') else { return Some((0, text)) };
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    if digits == 0 {
        return None;
    }
    let kept = &rest[..digits.min(9)];
    let value: i64 = kept.parse().ok()?;
    Some((value * 10_i64.pow(u32::try_from(9 - kept.len()).ok()?), &rest[digits..]))
}

fn parse_zone(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = match zone.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    Some(sign * (number(hours, 2)? * 3600 + number(minutes, 2)? * 60))
}

/// Days since 1970-01-01. Years begin in March, so that the leap day is the last of its year; 400 years have 146,097 days.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_are_read() {
        for (text, ns) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2024-02-29T12:00:00Z", 1_709_208_000 * NANOS),
            ("2024-02-29T13:00:00+01:00", 1_709_208_000 * NANOS),
            ("2024-02-29T06:30:00-05:30", 1_709_208_000 * NANOS),
            ("2016-10-06T00:17:09.669794202Z", 1_475_713_029_669_794_202),
            ("1969-12-31T23:59:59.5Z", -NANOS / 2),
        ] {
            assert_eq!(parse_rfc3339(text), Some(ns), "{text}");
        }
    }

    #[test]
    fn nonsense_is_not_read() {
        for text in
            ["", "2024", "2024-13-01T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01T00:00:00", "2024-01-01T00:00:00.Z"]
        {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn days_of_eight_centuries_follow_each_other() {
        let (mut year, mut month, mut day) = (1600, 1, 1);
        let mut expected = days_from_civil(year, month, day);
        assert_eq!(expected, -135_140);
        while year < 2400 {
            assert_eq!(days_from_civil(year, month, day), expected, "{year}-{month}-{day}");
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            expected += 1;
            day += 1;
            if day > length[usize::try_from(month - 1).unwrap()] {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }
}
