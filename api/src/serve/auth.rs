//! API keys. With keys configured, every route needs one, unknown routes too, unless it is listed as public.

use super::app::App;
use super::config::{ServeConfig, refuse};
use super::error::HttpError;
use crate::error::{ApiError, Result};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Keys as they are configured. They show as stars wherever they would be printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApiKeys(pub Vec<String>);

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// Who may call what.
pub(crate) struct Guard {
    /// Digests of the keys: comparing them takes the same time whatever a caller guesses.
    digests: Vec<[u8; 32]>,
    public: Vec<String>,
}

impl Guard {
    /// Reads the keys of the configuration and of its key file (one a line; `#` begins a comment).
    ///
    /// # Errors
    /// A file that cannot be read or holds no key; a key that is no header text; a public route that does not exist.
    pub fn new(config: &ServeConfig, routes: &[String]) -> Result<Self> {
        let mut keys = config.api_keys.0.clone();
        if let Some(path) = &config.api_key_file {
            let text = std::fs::read_to_string(path)
                .map_err(|e| ApiError::file(path, &e, "check serve.api_key_file"))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let found: Vec<String> = lines.map(str::to_owned).collect();
            if found.is_empty() {
                let hint = "write one key a line, or leave the file out to serve without keys";
                return Err(refuse("api_key_file", format!("{} holds no key", path.display()), hint));
            }
            keys.extend(found);
        }
        let bad = |key: &String| key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic());
        if let Some(at) = keys.iter().position(bad) {
            let reason = format!("key {} is empty, or holds blanks or characters beyond ASCII", at + 1);
            return Err(refuse("api_keys", reason, "use letters, digits and punctuation"));
        }
        if let Some(path) = config.public_routes.iter().find(|path| !routes.contains(path)) {
            let hint = format!("routes: {}", routes.join(", "));
            return Err(refuse("public_routes", format!("there is no route {path}"), hint));
        }
        let digests = keys.iter().map(|key| Sha256::digest(key).into()).collect();
        Ok(Self { digests, public: config.public_routes.clone() })
    }

    /// True when keys are needed at all.
    pub fn is_closed(&self) -> bool {
        !self.digests.is_empty()
    }

    /// True when `presented` is one of the keys. Looks at all of them, in time that depends on their number only.
    fn knows(&self, presented: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(presented).into();
        let found = self.digests.iter().fold(Choice::from(0), |found, key| found | key.ct_eq(&digest));
        found.into()
    }
}

/// Lets a request pass that brings a key or needs none.
pub(crate) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let guard = &app.guard;
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    if !guard.is_closed() || route.is_some_and(|route| guard.public.iter().any(|public| public == route)) {
        return next.run(request).await;
    }
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let presented = given.and_then(|text| {
        let (scheme, key) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    match presented {
        Some(key) if guard.knows(key) => next.run(request).await,
        Some(_) => refusal("the API key is not known"),
        None => refusal("an API key is needed"),
    }
}

fn refusal(message: &str) -> Response {
    let hint = "send the header Authorization: Bearer KEY";
    let error = HttpError::invalid(StatusCode::UNAUTHORIZED, message, hint);
    let mut response = error.kind("authentication_error").code("invalid_api_key").into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
