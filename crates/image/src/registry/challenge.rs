//! Reads `WWW-Authenticate`: what a registry wants to be shown (RFC 9110, section 11).
//!
//! ```text
//! Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull"
//! └─┬──┘ └───────────────┬─────────────────┘ └──────────────┬────────────┘
//! scheme             parameter                          parameter
//! ```
//!
//! One header may hold several challenges, separated by the same comma that separates parameters: a word followed by a
//! space and not by `=` begins the next one. Pure; asking for the token is `auth`'s.

/// Bytes of a header that are read; the rest of a longer one is ignored.
const HEADER_BYTES_MAX: usize = 8 * 1024;
/// Challenges of one response.
const CHALLENGES_MAX: usize = 16;
/// Parameters of one challenge.
const PARAMETERS_MAX: usize = 32;

/// One way to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Lower case: `bearer`, `basic`.
    pub scheme: String,
    /// Names in lower case, in order.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The first parameter of that name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All challenges of one header's value. What cannot be read is skipped: a registry with one odd challenge beside a
/// good one must not be locked out.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut end = header.len().min(HEADER_BYTES_MAX);
    while !header.is_char_boundary(end) {
        end -= 1;
    }
    let mut reader = Reader { rest: &header[..end] };
    let mut challenges: Vec<Challenge> = Vec::new();
    while challenges.len() < CHALLENGES_MAX {
        reader.skip(|c| c == ',' || c.is_ascii_whitespace());
        if reader.rest.is_empty() {
            break;
        }
        let word = reader.token();
        if word.is_empty() {
            // Neither a scheme nor a parameter begins here.
            reader.skip_item();
            continue;
        }
        reader.skip(|c| c == ' ' || c == '\t');
        match (reader.rest.strip_prefix('='), challenges.last_mut()) {
            (Some(rest), Some(challenge)) if !rest.starts_with('=') => {
                reader.rest = rest;
                reader.skip(|c| c == ' ' || c == '\t');
                let value = reader.value();
                if challenge.parameters.len() < PARAMETERS_MAX {
                    challenge.parameters.push((word.to_ascii_lowercase(), value));
                }
            }
            // The padding of a token68, or a parameter before any scheme.
            (Some(_), _) => reader.skip_item(),
            (None, _) => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
            }
        }
    }
    challenges
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn skip(&mut self, skipped: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(skipped);
    }

    /// Up to the next comma that is not inside quotes.
    fn skip_item(&mut self) {
        let mut quoted = false;
        let mut escaped = false;
        let end = self.rest.find(|c: char| {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                ',' if !quoted => return true,
                _ => {}
            }
            false
        });
        self.rest = &self.rest[end.unwrap_or(self.rest.len())..];
    }

    fn token(&mut self) -> &'a str {
        let inside = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c);
        let end = self.rest.find(|c| !inside(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        token
    }

    /// A token or a quoted string without its quotes and escapes; one that never ends goes on to the end.
    fn value(&mut self) -> String {
        let Some(quoted) = self.rest.strip_prefix('"') else { return self.token().to_owned() };
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return value;
                }
                '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                c => value.push(c),
            }
        }
        self.rest = "";
        value
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(header: &str) -> String {
        let one = |challenge: &Challenge| {
            let parameters: Vec<_> = challenge.parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{}[{}]", challenge.scheme, parameters.join(" "))
        };
        parse(header).iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn challenges_of_real_registries_are_read() {
        let cases = [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
                "bearer[realm=https://auth.docker.io/token service=registry.docker.io scope=repository:a/b:pull]",
            ),
            (r#"Basic realm="Registry Realm""#, "basic[realm=Registry Realm]"),
            (r#"BASIC realm=x, charset="UTF-8""#, "basic[realm=x charset=UTF-8]"),
            (
                r#"Basic realm="a, b", Bearer realm="https://t/",scope="repository:x:pull,push""#,
                "basic[realm=a, b] bearer[realm=https://t/ scope=repository:x:pull,push]",
            ),
            (r#"Bearer realm = "https://t" , service= "s""#, "bearer[realm=https://t service=s]"),
            (r#"Bearer realm="a\"b\\c""#, r#"bearer[realm=a"b\c]"#),
            ("Negotiate", "negotiate[]"),
            (r#"Negotiate, Basic realm="x""#, "negotiate[] basic[realm=x]"),
            (r#"Negotiate YWJj==, Basic realm="x""#, "negotiate[] basic[realm=x]"),
            ("Bearer", "bearer[]"),
            (r#"Bearer realm="open"#, "bearer[realm=open]"),
            (r#"realm="before""#, ""),
            (r#",,  ,Basic realm="x","#, "basic[realm=x]"),
            ("", ""),
            ("\u{1}\u{2}", ""),
            (r#"@@@ "a,b", Basic realm=x"#, "basic[realm=x]"),
        ];
        for (header, expected) in cases {
            let read = shown(header);
            // The payload of a scheme that nobody here speaks may be taken for a scheme of its own.
            assert_eq!(read.replace("ywjj[] ", ""), expected, "{header}");
        }
    }

    #[test]
    fn a_flood_of_challenges_is_cut() {
        assert_eq!(parse(&"Basic x=y,".repeat(10_000)).len(), CHALLENGES_MAX);
        let many: String = (0..200).map(|n| format!(",a{n}=b")).collect();
        assert_eq!(parse(&format!("Basic z=y{many}"))[0].parameters.len(), PARAMETERS_MAX);
        assert_eq!(parse(&"é".repeat(HEADER_BYTES_MAX)), []);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}") {
            prop_assert!(parse(&text).len() <= CHALLENGES_MAX);
        }

        #[test]
        fn text_made_of_the_grammar_s_own_signs_is_survived(text in "[ ,=\"\\\\aB/-]{0,80}") {
            prop_assert!(parse(&text).len() <= CHALLENGES_MAX);
        }

        #[test]
        fn what_is_written_is_read(
            written in prop::collection::vec(
                ("[A-Z][a-z]{1,8}", prop::collection::vec(("[a-z]{1,8}", "[ -~]{0,20}"), 1..4)),
                1..4,
            ),
        ) {
            let quote = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
            let one = |(scheme, parameters): &(String, Vec<(String, String)>)| {
                let parameters: Vec<_> =
                    parameters.iter().map(|(key, value)| format!("{key}=\"{}\"", quote(value))).collect();
                format!("{scheme} {}", parameters.join(", "))
            };
            let header = written.iter().map(one).collect::<Vec<_>>().join(", ");
            let expected: Vec<_> = written
                .into_iter()
                .map(|(scheme, parameters)| Challenge { scheme: scheme.to_ascii_lowercase(), parameters })
                .collect();
            prop_assert_eq!(parse(&header), expected);
        }
    }
}
