//! Turns a registry's challenge and the caller's credentials into an `Authorization` header.
//!
//! Basic is answered at once. Bearer means asking a token endpoint: with GET and the user's password, or with POST and
//! a refresh token (OAuth2); a ready-made registry token is shown as it is. What worked is kept per host, repository
//! and credentials, so that the other blobs of a pull, and the next pull with the same credentials, do not ask again,
//! and no pull ever spends another's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::Url;

use super::challenge::Challenge;
use super::client::{Ask, read_limited, send};
use super::error::{HostFailure, RegistryErrorKind};
use super::tls::Clients;
use crate::credentials::Credentials;

/// Bytes of a token endpoint's answer; tokens of cloud registries have some kilobytes.
const TOKEN_BYTES_MAX: usize = 256 * 1024;
/// The whole conversation with a token endpoint.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);
/// What the distribution spec says of a token that does not tell its life.
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// No token is kept longer, whatever it says: keys of registries change.
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(3600);
/// A token is not shown when it has less than this to live: the request must arrive before it dies.
const TOKEN_MARGIN: Duration = Duration::from_secs(5);
/// How long a password or ready-made token that worked is remembered.
const FIXED_LIFE: Duration = Duration::from_secs(300);
/// Remembered headers; beyond, those that have died are dropped, or else all.
const REMEMBERED_MAX: usize = 1024;
/// Who asks, for token endpoints that want to know (OAuth2's client_id).
const CLIENT_ID: &str = "knarr";

/// For whom a header was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    /// Scheme, host and port.
    pub origin: String,
    pub repository: String,
    /// `Credentials::fingerprint`; nothing of a secret can be read from it.
    pub credentials: [u8; 32],
}

/// The headers that worked, until they die.
#[derive(Default)]
pub(super) struct Tokens {
    remembered: Mutex<HashMap<TokenKey, Remembered>>,
}

struct Remembered {
    header: HeaderValue,
    dies: Instant,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, HashMap<TokenKey, Remembered>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to show without being asked.
    pub fn get(&self, key: &TokenKey) -> Option<HeaderValue> {
        let remembered = self.lock();
        let found = remembered.get(key)?;
        (found.dies > Instant::now() + TOKEN_MARGIN).then(|| found.header.clone())
    }

    /// `header` was refused. Another request may have got a fresh one meanwhile: that one stays.
    pub fn forget(&self, key: &TokenKey, header: &HeaderValue) {
        let mut remembered = self.lock();
        if remembered.get(key).is_some_and(|found| found.header == *header) {
            remembered.remove(key);
        }
    }

    fn keep(&self, key: TokenKey, header: HeaderValue, life: Duration) {
        let mut remembered = self.lock();
        let now = Instant::now();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, found| found.dies > now);
        }
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(key, Remembered { header, dies: now + life });
    }

    /// Answers a 401. `credentials` are those that this host may see; anonymous ones may still get a token.
    pub async fn answer(
        &self,
        clients: &Clients,
        key: TokenKey,
        challenges: &[Challenge],
        credentials: &Credentials,
    ) -> Result<HeaderValue, HostFailure> {
        let of_scheme = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let has_password = !credentials.username.is_empty() || !credentials.password.is_empty();
        let (header, life) = match (of_scheme("bearer"), of_scheme("basic")) {
            (Some(_), _) if !credentials.registry_token.is_empty() => {
                (secret(&format!("Bearer {}", credentials.registry_token))?, FIXED_LIFE)
            }
            (Some(bearer), _) => {
                let token = fetch_token(clients, &key, bearer, credentials).await?;
                (secret(&format!("Bearer {}", token.text))?, token.life)
            }
            (None, Some(_)) if has_password => (basic(credentials)?, FIXED_LIFE),
            (None, Some(_)) => return Err(unauthorized("credentials are needed and none were given for this host")),
            (None, None) => return Err(unauthorized("it asks for neither a bearer token nor a password")),
        };
        self.keep(key, header.clone(), life);
        Ok(header)
    }
}

struct Token {
    text: String,
    life: Duration,
}

async fn fetch_token(
    clients: &Clients,
    key: &TokenKey,
    challenge: &Challenge,
    credentials: &Credentials,
) -> Result<Token, HostFailure> {
    let url = token_url(key, challenge)?;
    let endpoint = format!("token endpoint {}", url.authority());
    let asking = async {
        let ask = token_request(url, challenge, key, credentials)?;
        let response = send(clients, &ask, None).await?;
        let body = read_limited(response, TOKEN_BYTES_MAX, None).await?;
        parse_token(&body)
    };
    match tokio::time::timeout(TOKEN_TIMEOUT, asking).await {
        Ok(token) => token.map_err(|failure| failure.context(&endpoint)),
        Err(_) => Err(HostFailure::silent(TOKEN_TIMEOUT).context(endpoint)),
    }
}

fn token_url(key: &TokenKey, challenge: &Challenge) -> Result<Url, HostFailure> {
    let realm = challenge.parameter("realm").unwrap_or("");
    let url = Url::parse(realm)
        .map_err(|error| HostFailure::invalid(format!("its token endpoint is no address: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !url.username().is_empty() {
        return Err(HostFailure::invalid("its token endpoint is not an http or https address"));
    }
    // A password that travels encrypted to the registry must not travel in clear to its token endpoint.
    if key.origin.starts_with("https:") && url.scheme() != "https" {
        return Err(HostFailure::invalid("its token endpoint is not reached by https, though the registry is"));
    }
    Ok(url)
}

fn token_request(
    mut url: Url,
    challenge: &Challenge,
    key: &TokenKey,
    credentials: &Credentials,
) -> Result<Ask, HostFailure> {
    let own_scope = format!("repository:{}:pull", key.repository);
    // Without a scope the token would open nothing.
    let scope = challenge.parameter("scope").filter(|scope| !scope.is_empty()).unwrap_or(&own_scope);
    let service = challenge.parameter("service");
    if !credentials.identity_token.is_empty() {
        let mut form = reqwest::Url::parse("form:").map_err(|error| HostFailure::invalid(error.to_string()))?;
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", service.unwrap_or(""))
            .append_pair("client_id", CLIENT_ID)
            .append_pair("scope", scope)
            .append_pair("refresh_token", &credentials.identity_token);
        return Ok(Ask { method: Method::POST, body: form.query().map(str::to_owned), ..Ask::get(url) });
    }
    let mut own = HeaderMap::new();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        // Several scopes come in one parameter and go out in one each.
        for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
            query.append_pair("scope", scope);
        }
        if !credentials.username.is_empty() {
            query.append_pair("account", &credentials.username);
        }
    }
    if !credentials.username.is_empty() || !credentials.password.is_empty() {
        own.insert(header::AUTHORIZATION, basic(credentials)?);
    }
    Ok(Ask { own, ..Ask::get(url) })
}

fn parse_token(body: &[u8]) -> Result<Token, HostFailure> {
    #[derive(serde::Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<serde_json::Number>,
    }
    // The parser's message would quote what may be a token.
    let answer: Answer =
        serde_json::from_slice(body).map_err(|_| HostFailure::invalid("the answer is not a token in JSON"))?;
    let text = [answer.token, answer.access_token].into_iter().flatten().find(|text| !text.is_empty());
    let text = text.ok_or_else(|| HostFailure::invalid("the answer holds no token"))?;
    let life = answer.expires_in.and_then(|seconds| seconds.as_f64()).filter(|seconds| *seconds > 0.0);
    let life = life.map_or(TOKEN_LIFE_DEFAULT, |seconds| {
        Duration::try_from_secs_f64(seconds).unwrap_or(TOKEN_LIFE_MAX).min(TOKEN_LIFE_MAX)
    });
    Ok(Token { text, life })
}

fn basic(credentials: &Credentials) -> Result<HeaderValue, HostFailure> {
    secret(&format!("Basic {}", BASE64.encode(format!("{}:{}", credentials.username, credentials.password))))
}

/// A header that is never printed.
fn secret(text: &str) -> Result<HeaderValue, HostFailure> {
    let mut value =
        HeaderValue::try_from(text).map_err(|_| HostFailure::invalid("the token cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn unauthorized(message: &str) -> HostFailure {
    HostFailure::lasting(RegistryErrorKind::Unauthorized, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(origin: &str) -> TokenKey {
        TokenKey { origin: origin.into(), repository: "a/b".into(), credentials: [0; 32] }
    }

    fn challenge(parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Challenge { scheme: "bearer".into(), parameters }
    }

    #[test]
    fn a_password_is_never_sent_in_clear_by_a_secure_registry_s_wish() {
        for realm in ["http://auth.example/token", "ftp://auth.example", "https://", "", "https://u@auth.example/"] {
            assert!(token_url(&key("https://r.example"), &challenge(&[("realm", realm)])).is_err(), "{realm}");
        }
        let realm = challenge(&[("realm", "http://127.0.0.1:5001/token")]);
        assert!(token_url(&key("http://127.0.0.1:5000"), &realm).is_ok());
    }

    #[test]
    fn the_request_for_a_token_says_who_and_what() {
        let credentials = Credentials { username: "me".into(), password: "pw".into(), ..Credentials::default() };
        let challenge = challenge(&[("realm", "https://a/t?x=1"), ("service", "s v"), ("scope", "one two")]);
        let url = token_url(&key("https://r"), &challenge).expect("valid");
        let ask = token_request(url, &challenge, &key("https://r"), &credentials).expect("valid");
        assert_eq!(ask.url.as_str(), "https://a/t?x=1&service=s+v&scope=one&scope=two&account=me");
        assert_eq!(ask.own.get("authorization").and_then(|v| v.to_str().ok()), Some("Basic bWU6cHc="));
    }

    #[test]
    fn an_identity_token_goes_into_the_body_only() {
        let credentials = Credentials { identity_token: "re&fresh".into(), ..Credentials::default() };
        let challenge = challenge(&[("realm", "https://a/t"), ("service", "s")]);
        let url = token_url(&key("https://r"), &challenge).expect("valid");
        let ask = token_request(url, &challenge, &key("https://r"), &credentials).expect("valid");
        assert_eq!((ask.method, ask.url.as_str(), ask.own.len()), (Method::POST, "https://a/t", 0));
        let body = "grant_type=refresh_token&service=s&client_id=knarr&scope=repository%3Aa%2Fb%3Apull\
                    &refresh_token=re%26fresh";
        assert_eq!(ask.body.as_deref(), Some(body));
    }

    #[test]
    fn tokens_are_read_in_both_spellings() {
        let cases = [
            (r#"{"token":"a"}"#, "a", 60),
            (r#"{"access_token":"b","expires_in":300}"#, "b", 300),
            (r#"{"token":"","access_token":"b","expires_in":null}"#, "b", 60),
            (r#"{"token":"a","access_token":"b","expires_in":1e300}"#, "a", 3600),
            (r#"{"token":"a","expires_in":-5}"#, "a", 60),
        ];
        for (body, text, life_s) in cases {
            let token = parse_token(body.as_bytes()).unwrap_or_else(|failure| panic!("{}", failure.message));
            assert_eq!((token.text.as_str(), token.life.as_secs()), (text, life_s), "{body}");
        }
        for body in ["", "{}", "[]", r#"{"token":5}"#, r#"{"token":""}"#, "secret-but-no-json"] {
            let failure = parse_token(body.as_bytes()).err().expect("no token");
            assert!(!failure.message.contains("secret"), "{}", failure.message);
        }
    }

    #[test]
    fn a_dying_token_is_not_shown_and_a_fresh_one_is_not_forgotten() {
        let tokens = Tokens::default();
        let (old, new) = (HeaderValue::from_static("Bearer old"), HeaderValue::from_static("Bearer new"));
        tokens.keep(key("https://r"), old.clone(), TOKEN_MARGIN);
        assert_eq!(tokens.get(&key("https://r")), None);
        tokens.keep(key("https://r"), new.clone(), Duration::from_secs(60));
        tokens.forget(&key("https://r"), &old);
        assert_eq!(tokens.get(&key("https://r")), Some(new.clone()));
        assert_eq!(tokens.get(&TokenKey { credentials: [1; 32], ..key("https://r") }), None);
        tokens.forget(&key("https://r"), &new);
        assert_eq!(tokens.get(&key("https://r")), None);
    }

    #[test]
    fn memory_of_tokens_is_bounded() {
        let tokens = Tokens::default();
        for n in 0..3 * REMEMBERED_MAX {
            tokens.keep(key(&n.to_string()), HeaderValue::from_static("x"), Duration::from_secs(60));
        }
        assert!(tokens.lock().len() <= REMEMBERED_MAX);
    }

    proptest! {
        #[test]
        fn any_answer_and_any_realm_are_survived(body in prop::collection::vec(any::<u8>(), 0..100), realm in "\\PC{0,60}") {
            let _ = parse_token(&body);
            let _ = token_url(&key("https://r"), &challenge(&[("realm", &realm)]));
        }
    }
}
