//! Amounts in the words of people: ages, sizes, shortened ids, image names.

/// How many digits of an id are shown; enough to be unique among the pods of any node.
const SHORT_ID_DIGITS: usize = 13;

/// The beginning of an id, without its algorithm.
pub fn short_id(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..SHORT_ID_DIGITS).unwrap_or(digits)
}

/// A span of seconds as kubectl prints ages: the finer part only while it says something.
pub fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let with = |whole: String, rest: i64, unit: &str| if rest == 0 { whole } else { format!("{whole}{rest}{unit}") };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => with(format!("{minutes}m"), seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => with(format!("{hours}h"), minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => with(format!("{days}d"), hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        _ => with(format!("{}y", days / 365), days % 365, "d"),
    }
}

/// The age of something with a timestamp in nanoseconds since 1970; a dash where there is none.
pub fn age_since(then_ns: i64, now_ns: i64) -> String {
    if then_ns <= 0 { "-".to_owned() } else { age((now_ns - then_ns) / 1_000_000_000) }
}

/// Bytes in powers of ten with three digits, as podman and crictl show images.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // What would be rounded up to four digits belongs to the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}{}", UNITS[unit])
}

/// The largest part of a text that fits, with `…` for the rest.
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Splits "host/name:tag" into name and tag, "host/name@digest" into name and digest.
pub fn split_reference(reference: &str) -> (&str, &str) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name, digest);
    }
    match reference.rsplit_once(':') {
        // A colon before the last slash belongs to the registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_as_kubectl_tells_them() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (135, "2m15s"),
            (600, "10m"),
            (3_600, "60m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_072_000 + 86_400, "2y1d"),
        ] {
            assert_eq!(age(seconds), text, "{seconds}");
        }
        assert_eq!(age_since(0, 5), "-");
        assert_eq!(age_since(1_000_000_000, 31_000_000_000), "30s");
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1_000, "1.00kB"),
            (4_260_000, "4.26MB"),
            (42_600_000, "42.6MB"),
            (99_960_000, "100MB"),
            (999_600_000, "1.00GB"),
            (u64::MAX, "18447PB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn ids_are_shortened_without_their_algorithm() {
        assert_eq!(short_id("sha256:0123456789abcdef0123"), "0123456789abc");
        assert_eq!(short_id("abc"), "abc");
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(shorten("abcd", 4), "abcd");
    }

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(split_reference("localhost:5000/a/b:1.2"), ("localhost:5000/a/b", "1.2"));
        assert_eq!(split_reference("localhost:5000/a/b"), ("localhost:5000/a/b", ""));
        assert_eq!(split_reference("a/b@sha256:12"), ("a/b", "sha256:12"));
    }
}
