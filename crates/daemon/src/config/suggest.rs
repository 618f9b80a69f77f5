//! Guesses which known name a misspelt one meant.

/// The candidate nearest to `typed`, if it is near enough to have been meant: at most a third of the letters differ.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = normalize(typed);
    let limit = (plain.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(&plain, &normalize(candidate)), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Case and the choice of `-` or `_` are no misspelling worth counting.
fn normalize(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}

/// How many insertions, deletions, replacements and swaps of neighbours turn one name into the other.
fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (row, have) in from.iter().enumerate() {
        let mut line = vec![row + 1];
        for (column, want) in to.iter().enumerate() {
            let replaced = above[column] + usize::from(have != want);
            let mut least = replaced.min(above[column + 1] + 1).min(line[column] + 1);
            let swapped = row > 0 && column > 0 && *have == to[column - 1] && from[row - 1] == *want;
            if swapped {
                least = least.min(before[column - 1] + 1);
            }
            line.push(least);
        }
        before = std::mem::replace(&mut above, line);
    }
    above[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 4] = ["conf_dir", "bin_dirs", "plugin_timeout", "max_networks"];

    #[test]
    fn a_slip_finds_the_key_that_was_meant() {
        assert_eq!(nearest("conf_dri", KEYS), Some("conf_dir"));
        assert_eq!(nearest("bin_dir", KEYS), Some("bin_dirs"));
        assert_eq!(nearest("Plugin-Timeout", KEYS), Some("plugin_timeout"));
        assert_eq!(nearest("max_network", KEYS), Some("max_networks"));
    }

    #[test]
    fn a_foreign_word_finds_nothing() {
        assert_eq!(nearest("registry", KEYS), None);
        assert_eq!(nearest("x", KEYS), None);
    }

    #[test]
    fn distance_counts_single_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("abcd", "abdc"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
