//! Reads containerd's `hosts.toml`: which hosts to ask for one registry, in order.
//!
//! ```toml
//! server = "https://registry-1.docker.io"       # asked last; without it, the registry itself is
//!
//! [host."https://mirror.example:5000"]          # asked in the order of the file
//!   capabilities = ["pull", "resolve"]
//!   ca = "mirror.crt"                           # relative to the file's directory
//!   client = [["client.cert", "client.key"]]
//!   skip_verify = false
//!   override_path = false
//!   dial_timeout = "2s"
//!   [host."https://mirror.example:5000".header]
//!     x-team = ["build"]
//! ```
//!
//! Pure: text in, entries out. A file that cannot be read in full is an error, not half a configuration: ignoring a
//! mirror could send an image's name to a registry that was not meant to see it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use toml::{Table, Value};

/// Hosts of one file.
const HOSTS_MAX: usize = 64;
/// What a table may hold.
const KEYS: [&str; 7] = ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"];

/// One host of the file, or the registry itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HostEntry {
    /// Scheme, host, port and the path in front of the repository; `None`: the registry itself.
    pub url: Option<Url>,
    /// Whether blobs and digests may be asked for; `None`: both.
    pub capabilities: Option<Capabilities>,
    /// Authorities to trust beside the system's.
    pub ca: Vec<PathBuf>,
    /// Certificates to show, with the key in the same or another file.
    pub client: Vec<ClientPair>,
    /// Whether any certificate will do, when the file says.
    pub skip_verify: Option<bool>,
    /// To be sent with each request.
    pub headers: HeaderMap,
    /// Until connected.
    pub dial_timeout: Option<Duration>,
}

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Things by digest.
    pub pull: bool,
    /// What a tag stands for.
    pub resolve: bool,
}

/// A certificate and its key, which may be in the same file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientPair {
    pub certificate: PathBuf,
    pub key: Option<PathBuf>,
}

/// The entries in the order to be asked, and keys of the file that mean nothing here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HostsFile {
    pub entries: Vec<HostEntry>,
    pub unknown: Vec<String>,
}

/// Reads a file's text; `directory` is where its relative paths begin.
pub(super) fn parse(text: &str, directory: &Path) -> Result<HostsFile, String> {
    let mut root: Table = toml::from_str(text).map_err(|error| error.to_string().trim_end().replace('\n', " "))?;
    let mut file = HostsFile::default();
    let hosts = match root.remove("host") {
        None => Table::new(),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err("host is not a table".into()),
    };
    if hosts.len() > HOSTS_MAX {
        return Err(format!("more than {HOSTS_MAX} hosts"));
    }
    for (name, settings) in hosts {
        let Value::Table(settings) = settings else { return Err(format!("{} is not a table", shown(&name))) };
        let entry = parse_entry(&name, &settings, directory).map_err(|why| format!("{}: {why}", shown(&name)))?;
        file.unknown.extend(unknown_keys(&settings).map(|key| format!("{}.{key}", shown(&name))));
        file.entries.push(entry);
    }
    let server = match root.remove("server") {
        None => String::new(),
        Some(Value::String(server)) => server,
        Some(_) => return Err("server is not a string".into()),
    };
    file.entries.push(parse_entry(&server, &root, directory)?);
    file.unknown.extend(unknown_keys(&root).cloned());
    Ok(file)
}

/// A host for a message; what precedes an `@` may be a password.
fn shown(name: &str) -> String {
    match name.rsplit_once('@') {
        Some((_, host)) => format!("host.\"…@{host}\""),
        None => format!("host.{name:?}"),
    }
}

fn unknown_keys(settings: &Table) -> impl Iterator<Item = &String> {
    settings.keys().filter(|key| !KEYS.contains(&key.as_str()))
}

fn parse_entry(server: &str, settings: &Table, directory: &Path) -> Result<HostEntry, String> {
    let override_path = boolean(settings, "override_path")?.unwrap_or(false);
    let url = if server.is_empty() { None } else { Some(parse_server(server, override_path)?) };
    let absolute = |path: &String| directory.join(path);
    Ok(HostEntry {
        url,
        capabilities: parse_capabilities(settings)?,
        ca: strings(settings, "ca")?.iter().map(absolute).collect(),
        client: parse_client(settings, directory)?,
        skip_verify: boolean(settings, "skip_verify")?,
        headers: parse_headers(settings)?,
        dial_timeout: match settings.get("dial_timeout") {
            None => None,
            // Go's dialer takes zero for no deadline of its own.
            Some(Value::String(text)) => parse_duration(text)?.filter(|duration| !duration.is_zero()),
            Some(_) => return Err("dial_timeout is not a string".into()),
        },
    })
}

fn parse_server(server: &str, override_path: bool) -> Result<Url, String> {
    let with_scheme = if server.contains("://") { server.to_owned() } else { format!("https://{server}") };
    let mut url = Url::parse(&with_scheme).map_err(|error| format!("{server:?}: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("{server:?} is not an http or https address"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the address holds a user name; put it into header instead".into());
    }
    let mut segments: Vec<String> =
        url.path().split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
    if !override_path && segments.last().is_none_or(|last| last != "v2") {
        segments.push("v2".into());
    }
    url.set_path(&segments.join("/"));
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

fn parse_capabilities(settings: &Table) -> Result<Option<Capabilities>, String> {
    let names = strings(settings, "capabilities")?;
    if names.is_empty() {
        return Ok(None);
    }
    let mut capabilities = Capabilities { pull: false, resolve: false };
    for name in names {
        match name.to_ascii_lowercase().as_str() {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            // Things that a node never does.
            "push" | "referrers" => {}
            _ => return Err(format!("unknown capability {name:?}")),
        }
    }
    Ok(Some(capabilities))
}

/// `"both.pem"`, `["one.pem", "two.pem"]` or `[["one.cert", "one.key"]]`.
fn parse_client(settings: &Table, directory: &Path) -> Result<Vec<ClientPair>, String> {
    let alone = |path: &str| ClientPair { certificate: directory.join(path), key: None };
    match settings.get("client") {
        None => Ok(Vec::new()),
        Some(Value::String(path)) => Ok(vec![alone(path)]),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| match item {
                Value::String(path) => Ok(alone(path)),
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(certificate), Value::String(key)] => Ok(ClientPair {
                        certificate: directory.join(certificate),
                        key: (!key.is_empty()).then(|| directory.join(key)),
                    }),
                    _ => Err("client is not a list of pairs of certificate and key".to_owned()),
                },
                _ => Err("client holds something that is neither a path nor a pair".to_owned()),
            })
            .collect(),
        Some(_) => Err("client is neither a path nor a list".into()),
    }
}

fn parse_headers(settings: &Table) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let table = match settings.get("header") {
        None => return Ok(headers),
        Some(Value::Table(table)) => table,
        Some(_) => return Err("header is not a table".into()),
    };
    for name in table.keys() {
        let parsed = HeaderName::try_from(name.as_str()).map_err(|_| format!("{name:?} is no header's name"))?;
        for value in strings(table, name)? {
            let mut value =
                HeaderValue::try_from(value.as_str()).map_err(|_| format!("header {name} has a bad value"))?;
            value.set_sensitive(true);
            headers.append(&parsed, value);
        }
    }
    Ok(headers)
}

fn boolean(settings: &Table, key: &str) -> Result<Option<bool>, String> {
    match settings.get(key) {
        None => Ok(None),
        Some(Value::Boolean(value)) => Ok(Some(*value)),
        Some(_) => Err(format!("{key} is neither true nor false")),
    }
}

/// A string or a list of them.
fn strings(settings: &Table, key: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("{key} is neither a string nor a list of strings");
    match settings.get(key) {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(many)) => {
            many.iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

/// Go's durations: `1m30s`, `500ms`, `1.5h`. Empty is absent.
fn parse_duration(text: &str) -> Result<Option<Duration>, String> {
    let wrong = || format!("dial_timeout {text:?} is not a duration such as 10s or 1m30s");
    if text.is_empty() {
        return Ok(None);
    }
    if text == "0" {
        return Ok(Some(Duration::ZERO));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let unit_s = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * unit_s).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = next;
    }
    Ok(Some(total))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> HostsFile {
        parse(text, Path::new("/certs/docker.io")).unwrap_or_else(|error| panic!("{error}"))
    }

    fn urls(text: &str) -> Vec<String> {
        read(text).entries.iter().map(|entry| entry.url.as_ref().map(Url::to_string).unwrap_or_default()).collect()
    }

    #[test]
    fn hosts_are_asked_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example"]
            [host."http://a.example:5000"]
              [host."http://a.example:5000".header]
              x = "y"
            [host."m.example"]
        "#;
        let expected = [
            "https://z.example/v2",
            "http://a.example:5000/v2",
            "https://m.example/v2",
            "https://registry-1.docker.io/v2",
        ];
        assert_eq!(urls(text), expected);
    }

    #[test]
    fn without_a_server_the_registry_itself_is_last() {
        assert_eq!(urls(""), [""]);
        assert_eq!(urls("[host.\"https://m.example\"]"), ["https://m.example/v2", ""]);
    }

    #[test]
    fn paths_get_the_api_version_unless_they_override_it() {
        let cases = [
            ("https://m.example", false, "https://m.example/v2"),
            ("https://m.example/", false, "https://m.example/v2"),
            ("https://m.example/v2", false, "https://m.example/v2"),
            ("https://m.example/v2/", false, "https://m.example/v2"),
            ("https://m.example/v2/hub", false, "https://m.example/v2/hub/v2"),
            ("https://m.example/v2/hub", true, "https://m.example/v2/hub"),
            ("https://m.example//v2//hub/", true, "https://m.example/v2/hub"),
            ("https://m.example", true, "https://m.example/"),
            ("m.example:5000/x", false, "https://m.example:5000/x/v2"),
            ("httpbin.example", false, "https://httpbin.example/v2"),
            ("http://[::1]:5000", false, "http://[::1]:5000/v2"),
        ];
        for (server, override_path, expected) in cases {
            let text = format!("[host.{server:?}]\noverride_path = {override_path}");
            assert_eq!(urls(&text)[0], expected, "{server}");
        }
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            ca = "root.crt"
            [host."https://m.example"]
            capabilities = ["Pull"]
            ca = ["a.crt", "/abs/b.crt"]
            client = [["c.cert", "c.key"], "both.pem", ["d.cert", ""]]
            skip_verify = true
            dial_timeout = "1m30s"
            [host."https://m.example".header]
            x-one = "1"
            x-two = ["a", "b"]
        "#;
        let file = read(text);
        let host = &file.entries[0];
        assert_eq!(host.capabilities, Some(Capabilities { pull: true, resolve: false }));
        assert_eq!(host.ca, [Path::new("/certs/docker.io/a.crt"), Path::new("/abs/b.crt")]);
        let pair = |certificate: &str, key: Option<&str>| ClientPair {
            certificate: Path::new("/certs/docker.io").join(certificate),
            key: key.map(|key| Path::new("/certs/docker.io").join(key)),
        };
        assert_eq!(host.client, [pair("c.cert", Some("c.key")), pair("both.pem", None), pair("d.cert", None)]);
        assert_eq!(host.skip_verify, Some(true));
        assert_eq!(host.dial_timeout, Some(Duration::from_secs(90)));
        let two: Vec<_> = host.headers.get_all("x-two").iter().collect();
        assert_eq!((host.headers.get("x-one").is_some(), two.len()), (true, 2));
        assert_eq!(file.entries[1].ca, [Path::new("/certs/docker.io/root.crt")]);
        assert_eq!(file.entries[1].skip_verify, None);
    }

    #[test]
    fn unknown_keys_are_reported_and_do_no_harm() {
        let file = read("servr = \"x\"\n[host.\"https://m.example\"]\ncapabilites = [\"pull\"]");
        assert_eq!(file.unknown, ["host.\"https://m.example\".capabilites", "servr"]);
    }

    #[test]
    fn broken_files_are_refused_with_the_key() {
        let cases = [
            ("server = ", "expected"),
            ("server = 1", "server"),
            ("host = 1", "host"),
            ("[host]\n\"https://m\" = 1", "https://m"),
            ("[host.\"ftp://m.example\"]", "ftp"),
            ("[host.\"https://\"]", "https://"),
            ("[host.\"https://user:pw@m.example\"]", "header"),
            ("[host.\"https://m.example\"]\ncapabilities = [\"fly\"]", "fly"),
            ("[host.\"https://m.example\"]\nskip_verify = \"yes\"", "skip_verify"),
            ("[host.\"https://m.example\"]\nca = 1", "ca"),
            ("[host.\"https://m.example\"]\nclient = [[\"a\"]]", "client"),
            ("[host.\"https://m.example\"]\nclient = [1]", "client"),
            ("[host.\"https://m.example\"]\ndial_timeout = \"soon\"", "dial_timeout"),
            ("[host.\"https://m.example\"]\ndial_timeout = 5", "dial_timeout"),
            ("[host.\"https://m.example\"]\nheader = 5", "header"),
            ("[host.\"https://m.example\".header]\n\"a b\" = \"c\"", "a b"),
            ("[host.\"https://m.example\".header]\na = \"c\\nd\"", "bad value"),
        ];
        for (text, expected) in cases {
            let error = parse(text, Path::new("/")).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains('\n') && !error.contains("pw"), "{error}");
        }
    }

    #[test]
    fn durations_are_go_s() {
        let cases = [
            ("10s", Some(10_000)),
            ("500ms", Some(500)),
            ("1.5s", Some(1500)),
            ("1h2m3s", Some(3_723_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), Ok(millis.map(Duration::from_millis)), "{text}");
        }
        for text in ["10", "s", "-1s", "1..s", "1x", "1s2", "99999999999999999999h", "1e400s", "NaNs", "."] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}", duration in "[0-9.a-zµ+-]{0,20}") {
            let _ = parse(&text, Path::new("/d"));
            let _ = parse_duration(&duration);
        }

        #[test]
        fn any_order_of_hosts_is_kept(order in Just((0..8).collect::<Vec<_>>()).prop_shuffle()) {
            let text: String = order.iter().map(|n| format!("[host.\"https://h{n}.example\"]\n")).collect();
            let expected: Vec<_> = order.iter().map(|n| format!("https://h{n}.example/v2")).collect();
            prop_assert_eq!(&urls(&text)[..8], &expected[..]);
        }

        #[test]
        fn any_value_under_a_known_key_is_survived(
            key in prop::sample::select(KEYS.as_slice()),
            value in prop::sample::select(vec![
                "1", "\"x\"", "true", "[]", "[[]]", "[1]", "{}", "{a=1}", "[\"\"]", "[[\"a\",\"b\"]]", "1.5", "2020-01-01",
            ]),
        ) {
            let _ = parse(&format!("[host.\"https://m.example\"]\n{key} = {value}"), Path::new("/d"));
        }
    }
}
