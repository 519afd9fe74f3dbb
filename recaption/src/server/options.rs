//! What is said of a fleet of caption servers: what determines the answers, and how they are asked for.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Keys of a request's body that are not for `extra`: without them it would be another request, or another form of answer.
const OURS: [&str; 4] = ["messages", "model", "n", "stream"];
/// Endpoints that one captioner may have.
const MOST_ENDPOINTS: usize = 1024;
/// Requests that one endpoint may have at a time, whatever is written.
const MOST_IN_FLIGHT: usize = 4096;

/// A fleet of servers with one model.
// Only `semantics` may be part of a fingerprint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerOptions {
    #[serde(flatten)]
    pub semantics: Semantics,
    #[serde(flatten)]
    pub operations: Operations,
}

/// What determines the answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Semantics {
    /// The model's name, as GET /v1/models lists it.
    pub model: String,
    /// Further keys of each request's body, such as repetition_penalty or chat_template_kwargs; those of the sampling are
    /// replaced [none].
    pub extra: Map<String, Value>,
    /// Images with a longer side are made smaller before they are sent, in pixels [2048].
    pub max_side: u32,
}

/// How they are asked for; changes nothing about an answer.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Operations {
    /// The servers, by their base URLs such as "http://host:8000/v1"; each one a string, or a table { url, in_flight }.
    pub endpoints: Vec<Endpoint>,
    /// The most requests in flight at an endpoint that does not say it itself [64].
    pub in_flight: usize,
    /// The environment variable that holds the servers' token [none is sent].
    pub api_key_env: Option<String>,
    /// A PEM file of certificates to trust besides those of this machine [none].
    pub trusted_certificates: Option<PathBuf>,
    /// Seconds for a whole answer, from the request to its last byte [120].
    pub timeout: f64,
    /// Seconds for a name and a connection, TLS included [10].
    pub connect_timeout: f64,
    /// How often a request is sent whose answers are to blame, not the server's state: bad ones, none in time [6].
    pub attempts: u32,
    /// Seconds before a second try, where the server does not say; doubled with each further one [0.5].
    pub back_off: f64,
    /// The longest of these, in seconds [8].
    pub longest_back_off: f64,
    /// Seconds for which an endpoint that only fails is left alone; doubled as long as it does not recover [1].
    pub cool_down: f64,
    /// The longest of these, in seconds [30].
    pub longest_cool_down: f64,
    /// Seconds without a single answer from any endpoint after which the job stops [600].
    pub give_up_after: f64,
}

impl Default for Semantics {
    fn default() -> Self {
        Self { model: String::new(), extra: Map::new(), max_side: 2048 }
    }
}

impl Default for Operations {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            in_flight: 64,
            api_key_env: None,
            trusted_certificates: None,
            timeout: 120.0,
            connect_timeout: 10.0,
            attempts: 6,
            back_off: 0.5,
            longest_back_off: 8.0,
            cool_down: 1.0,
            longest_cool_down: 30.0,
            give_up_after: 600.0,
        }
    }
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(from = "Written")]
#[schemars(with = "Written")]
pub struct Endpoint {
    /// Its base URL, to which `/chat/completions` is added.
    pub url: String,
    /// The most requests in flight there [that of all endpoints].
    pub in_flight: Option<usize>,
}

/// An endpoint, as people write it.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a base URL such as \"http://host:8000/v1\", or a table { url, in_flight }")]
enum Written {
    Url(String),
    Table(Table),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Table {
    /// Its base URL.
    url: String,
    /// The most requests in flight there [that of all endpoints].
    #[serde(default)]
    in_flight: Option<usize>,
}

impl From<Written> for Endpoint {
    fn from(written: Written) -> Self {
        match written {
            Written::Url(url) => Self { url, in_flight: None },
            Written::Table(Table { url, in_flight }) => Self { url, in_flight },
        }
    }
}

/// What is wrong with options, and in which key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct OptionsError {
    pub key: &'static str,
    pub message: String,
}

impl OptionsError {
    pub(super) fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into() }
    }
}

/// Where one server is asked for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// As written, without a slash at its end.
    pub(super) base: String,
    pub(super) chat: Url,
    pub(super) models: Url,
    pub(super) health: Url,
    pub(super) cap: usize,
}

impl ServerOptions {
    /// Whether a fleet can be made of it, as far as that can be said without a look at the machine and the network.
    pub fn check(&self) -> Result<(), OptionsError> {
        self.semantics.check()?;
        self.operations.check()
    }
}

impl Semantics {
    /// What answers, as it counts for the result: the model's name, and the further keys if there are any.
    pub fn identity(&self) -> String {
        if self.extra.is_empty() {
            return self.model.clone();
        }
        format!("{} {}", self.model, Value::from(self.extra.clone()))
    }

    fn check(&self) -> Result<(), OptionsError> {
        if self.model.trim().is_empty() {
            return Err(OptionsError::new("model", "expected the name that the servers know it by (GET /v1/models)"));
        }
        if let Some(key) = OURS.iter().find(|key| self.extra.contains_key(**key)) {
            return Err(OptionsError::new("extra", format!("`{key}` is not for this table")));
        }
        if !(16..=16_384).contains(&self.max_side) {
            let message = format!("{} is no size for an image: expected 16 to 16384 pixels", self.max_side);
            return Err(OptionsError::new("max_side", message));
        }
        Ok(())
    }
}

impl Operations {
    fn check(&self) -> Result<(), OptionsError> {
        self.addresses()?;
        if self.attempts == 0 {
            return Err(OptionsError::new("attempts", "0: expected 1 or more"));
        }
        if self.api_key_env.as_ref().is_some_and(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(OptionsError::new("api_key_env", "expected the name of an environment variable"));
        }
        let seconds = [
            ("timeout", self.timeout),
            ("connect_timeout", self.connect_timeout),
            ("back_off", self.back_off),
            ("longest_back_off", self.longest_back_off),
            ("cool_down", self.cool_down),
            ("longest_cool_down", self.longest_cool_down),
            ("give_up_after", self.give_up_after),
        ];
        match seconds.iter().find(|(_, value)| !(*value > 0.0 && *value <= 86_400.0)) {
            Some((key, value)) => {
                Err(OptionsError::new(key, format!("{value}: expected more than 0 and at most 86400 seconds")))
            }
            None => Ok(()),
        }
    }

    pub(super) fn addresses(&self) -> Result<Vec<Address>, OptionsError> {
        if self.endpoints.is_empty() {
            return Err(OptionsError::new("endpoints", "expected at least one, such as \"http://host:8000/v1\""));
        }
        if self.endpoints.len() > MOST_ENDPOINTS {
            return Err(OptionsError::new("endpoints", format!("more than {MOST_ENDPOINTS}")));
        }
        let mut addresses: Vec<Address> = Vec::with_capacity(self.endpoints.len());
        for endpoint in &self.endpoints {
            let (cap, key) = endpoint.in_flight.map_or((self.in_flight, "in_flight"), |cap| (cap, "endpoints"));
            if cap == 0 || cap > MOST_IN_FLIGHT {
                return Err(OptionsError::new(key, format!("in_flight = {cap}: expected 1 to {MOST_IN_FLIGHT}")));
            }
            let address = Address::of(&endpoint.url, cap).map_err(|message| OptionsError::new("endpoints", message))?;
            if addresses.iter().any(|other| other.base == address.base) {
                return Err(OptionsError::new("endpoints", format!("{} is there twice", address.base)));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }
}

impl Address {
    fn of(base: &str, cap: usize) -> Result<Self, String> {
        let base = base.trim().trim_end_matches('/');
        let url = Url::parse(base).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(url) = url else {
            // It is not shown: what is no URL may be anything, a token too.
            return Err("expected base URLs such as \"http://host:8000/v1\"".to_owned());
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "a URL holds a name or password; tokens come from the variable that api_key_env names".to_owned()
            );
        }
        if url.query().is_some() || url.fragment().is_some() || base.ends_with("/completions") {
            return Err(format!("{base}: expected the base URL alone, such as \"http://host:8000/v1\""));
        }
        let join = |base: &str, path: &str| Url::parse(&format!("{base}/{path}")).map_err(|e| format!("{base}: {e}"));
        let root = base.strip_suffix("/v1").unwrap_or(base);
        Ok(Self {
            chat: join(base, "chat/completions")?,
            models: join(base, "models")?,
            health: join(root, "health")?,
            base: base.to_owned(),
            cap,
        })
    }
}

/// A number of seconds that [`ServerOptions::check`] has seen.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_hours(24))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<ServerOptions, String> {
        let options: ServerOptions = serde_json::from_value(value).map_err(|error| error.to_string())?;
        options.check().map_err(|error| error.to_string())?;
        Ok(options)
    }

    #[test]
    fn endpoints_are_urls_or_tables() {
        let options = read(json!({
            "model": "llava",
            "endpoints": ["http://a:8000/v1/", { "url": "https://b/serve/v1", "in_flight": 7 }],
            "extra": { "repetition_penalty": 1.1 },
        }))
        .unwrap();
        let addresses = options.operations.addresses().unwrap();
        let shown: Vec<String> =
            addresses.iter().map(|a| format!("{} {} {} {}", a.chat, a.models, a.health, a.cap)).collect();
        assert_eq!(
            shown,
            [
                "http://a:8000/v1/chat/completions http://a:8000/v1/models http://a:8000/health 64",
                "https://b/serve/v1/chat/completions https://b/serve/v1/models https://b/serve/health 7",
            ]
        );
        assert_eq!(options.semantics.max_side, 2048);
        let semantics = serde_json::to_value(&options.semantics).unwrap();
        assert_eq!(semantics, json!({ "model": "llava", "extra": { "repetition_penalty": 1.1 }, "max_side": 2048 }));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        let with = |key: &str, value: Value| {
            let mut options = json!({ "model": "m", "endpoints": ["http://a/v1"] });
            options[key] = value;
            read(options).unwrap_err()
        };
        for (key, value, words) in [
            ("model", json!(" "), "model: expected the name"),
            ("endpoints", json!([]), "endpoints: expected at least one"),
            ("endpoints", json!(["http://a/v1", "http://a/v1/"]), "endpoints: http://a/v1 is there twice"),
            ("endpoints", json!(["ftp://a/v1"]), "endpoints: expected base URLs"),
            ("endpoints", json!(["http://me:secret@a/v1"]), "endpoints: a URL holds a name or password"),
            ("endpoints", json!(["http://a/v1/chat/completions"]), "expected the base URL alone"),
            ("endpoints", json!([{ "url": "http://a/v1", "in_flight": 0 }]), "endpoints: in_flight = 0"),
            ("endpoints", json!([{ "url": "http://a/v1", "inflight": 3 }]), "expected a base URL such as"),
            ("in_flight", json!(5000), "in_flight: in_flight = 5000"),
            ("extra", json!({ "stream": true }), "extra: `stream` is not for this table"),
            ("max_side", json!(0), "max_side: 0 is no size"),
            ("attempts", json!(0), "attempts: 0"),
            ("timeout", json!(0), "timeout: 0: expected more than 0"),
            ("give_up_after", json!(1e9), "give_up_after"),
            ("api_key_env", json!("A=B"), "api_key_env"),
            ("tiemout", json!(3), "unknown field `tiemout`"),
        ] {
            let error = with(key, value);
            assert!(error.contains(words), "{key}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_schema_knows_all_keys() {
        let schema = serde_json::to_value(schemars::schema_for!(ServerOptions)).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        for key in ["model", "extra", "max_side", "endpoints", "timeout", "give_up_after"] {
            assert!(properties[key]["description"].is_string(), "{key}: {schema}");
        }
    }
}
