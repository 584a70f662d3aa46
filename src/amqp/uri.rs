//! AMQP URIs, as RabbitMQ specifies them ("RabbitMQ URI Specification" and "RabbitMQ URI Query
//! Parameters"), to [`Endpoint`]s. Pure: nothing is resolved, opened or read.
//!
//! Written by hand because that specification is not what a general URL parser does: a host, a
//! user or a path may be absent or empty, and the two differ (`amqp://host` means the default
//! vhost, `amqp://host/` the one with the empty name).
//!
//! No error here repeats what stands where a password can stand, or where one can end up when a
//! character in it was not percent-encoded.

use crate::amqp::MAX_NAME;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::fmt;
use std::net::Ipv6Addr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Heartbeat interval unless the URI says otherwise, in seconds. A dead broker shows after about
/// twice as long (RabbitMQ, "Detecting Dead TCP Connections with Heartbeats").
const DEFAULT_HEARTBEAT: u16 = 10;

/// How to prove who one is: the library's own type, whose `Debug` shows the password.
pub use amiquip::Auth as Credentials;

/// What to trust and to show in a TLS handshake.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the authorities to trust besides the system's.
    pub cacertfile: Option<PathBuf>,
    /// PEM file with the client's certificate chain.
    pub certfile: Option<PathBuf>,
    /// PEM file with the client's private key, in PKCS #8, PKCS #1 or SEC 1. May be `certfile`.
    pub keyfile: Option<PathBuf>,
    /// Whether the broker need not prove who it is, which is unsafe.
    pub verify_none: bool,
    /// What the broker's certificate is for, and what it is told that it is called (RFC 6066, section 3): a DNS name or
    /// an IP address. None: the host.
    pub server_name_indication: Option<String>,
}

/// One broker, and how to log in to it.
#[derive(Clone, PartialEq)]
pub struct Endpoint {
    /// TLS settings of an `amqps` URI; None: plain TCP.
    pub tls: Option<Tls>,
    /// Host name or IP address, an IPv6 address without its brackets.
    pub host: String,
    /// TCP port, 1 to 65535.
    pub port: u16,
    /// Virtual host.
    pub vhost: String,
    /// Credentials.
    pub credentials: Credentials,
    /// Heartbeat interval in seconds; 0: none.
    pub heartbeat: u16,
    /// Bound on opening a connection to this broker, if the URI has one.
    pub connection_timeout: Option<Duration>,
    /// Most channels on the connection; 0: as many as the broker allows.
    pub channel_max: u16,
}

/// Shows where, as whom and which vhost; never the password.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls.is_some() { "amqps://" } else { "amqp://" })?;
        if let Credentials::Plain { username, .. } = &self.credentials
            && username != "guest"
        {
            write!(f, "{}@", utf8_percent_encode(username, &RESERVED))?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => write!(f, "{}", utf8_percent_encode(&self.host, &RESERVED))?,
        }
        write!(f, ":{}", self.port)?;
        match self.vhost.as_str() {
            "/" => Ok(()),
            vhost => write!(f, "/{}", utf8_percent_encode(vhost, &RESERVED)),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

/// Why a text is no list of URIs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UriError {
    /// Which URI of several is wrong, from 1. None: there is one only.
    pub number: Option<usize>,
    /// What is wrong with it, as in "its port is no number". Never a password.
    pub reason: String,
}

impl std::error::Error for UriError {}

impl fmt::Display for UriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "broker URI {number}: {}", self.reason),
            None => write!(f, "broker URI: {}", self.reason),
        }
    }
}

/// All that RFC 3986 does not call unreserved is encoded.
const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Returns the endpoints of a comma-separated list of URIs, in its order. A comma that no `amqp://` or
/// `amqps://` follows belongs to the URI it stands in.
///
/// # Errors
///
/// What is wrong with the first one that is none.
pub fn parse_list(list: &str) -> Result<Vec<Endpoint>, UriError> {
    let uris = split(list);
    let is_list = uris.len() > 1;
    let endpoint = |(index, uri): (usize, &&str)| {
        let number = is_list.then_some(index + 1);
        parse(uri.trim()).map_err(|reason| UriError { number, reason })
    };
    uris.iter().enumerate().map(endpoint).collect()
}

/// Returns whether one of a list of URIs has a password in it, well-formed or not.
pub fn has_password(list: &str) -> bool {
    split(list).into_iter().any(|uri| {
        // In one that is not well-formed, a password can have any character.
        let uri = if parse(uri.trim()).is_ok() { split_at_first(uri, '?').0 } else { uri };
        uri.rsplit_once('@').is_some_and(|(userinfo, _)| {
            userinfo.split_once("://").is_some_and(|(_, userinfo)| userinfo.contains(':'))
        })
    })
}

fn split(list: &str) -> Vec<&str> {
    let mut uris = Vec::new();
    let mut start = 0;
    for (comma, _) in list.match_indices(',') {
        let next = list[comma + 1..].trim_start().to_ascii_lowercase();
        if next.starts_with("amqp://") || next.starts_with("amqps://") {
            uris.push(&list[start..comma]);
            start = comma + 1;
        }
    }
    uris.push(&list[start..]);
    uris
}

/// Parses one URI. The error says what is wrong with it.
fn parse(uri: &str) -> Result<Endpoint, String> {
    let (scheme, rest) = uri.split_once("://").ok_or(match uri {
        "" => "it is empty",
        _ => "it does not begin with amqp:// or amqps://",
    })?;
    let (tls, default_port) = match scheme.to_ascii_lowercase().as_str() {
        "amqp" => (None, 5672),
        "amqps" => (Some(Tls::default()), 5671),
        _ => return Err("its scheme is neither amqp nor amqps".into()),
    };

    if uri.contains('#') {
        return Err("it has a fragment; write a # in a name or password as %23".into());
    }
    let (rest, query) = split_at_first(rest, '?');
    let (authority, path) = split_at_first(rest, '/');

    // Most likely this is no vhost but what is left of a user name or password.
    if path.is_some_and(|path| path.contains('@')) {
        return Err(format!("it has an @ behind a slash{ENCODE}"));
    }
    let (userinfo, hostport) = authority.rsplit_once('@').unwrap_or(("guest", authority));
    let (username, password) = split_at_first(userinfo, ':');
    let (host, port) = host_and_port(hostport)?;
    let mut endpoint = Endpoint {
        tls,
        host,
        port: port.unwrap_or(default_port),
        vhost: vhost(path)?,
        credentials: Credentials::Plain {
            username: decode(username, "user name")?,
            password: decode(password.unwrap_or("guest"), "password")?,
        },
        heartbeat: DEFAULT_HEARTBEAT,
        connection_timeout: None,
        channel_max: 0,
    };

    let query = query.unwrap_or_default();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        apply(&mut endpoint, parameter, query)?;
    }
    if let Some(Tls { certfile, keyfile, .. }) = &endpoint.tls
        && certfile.is_some() != keyfile.is_some()
    {
        return Err("certfile and keyfile go together".into());
    }
    Ok(endpoint)
}

fn vhost(path: Option<&str>) -> Result<String, String> {
    let Some(path) = path else { return Ok("/".into()) };
    if path.contains('/') {
        return Err("its vhost has a slash; write it as %2F".into());
    }
    match decode(path, "vhost")? {
        vhost if vhost.len() > MAX_NAME => Err("its vhost is longer than 255 bytes".into()),
        vhost => Ok(vhost),
    }
}

/// Returns what stands before the first `mark`, and, if there is one, what stands behind it.
fn split_at_first(text: &str, mark: char) -> (&str, Option<&str>) {
    text.split_once(mark).map_or((text, None), |(before, behind)| (before, Some(behind)))
}

fn host_and_port(hostport: &str) -> Result<(String, Option<u16>), String> {
    match hostport.split_once(',') {
        None => {}
        Some((_, "")) => return Err("a comma follows it, and no other URI".into()),
        Some(_) => {
            let rule = "in a list, each URI begins with amqp:// or amqps://";
            return Err(format!("its host has a comma; {rule}{ENCODE}"));
        }
    }

    let numeric = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '.';
    if hostport.matches(':').count() > 1 && hostport.chars().all(numeric) {
        let example = "as in amqp://[::1]:5672";
        return Err(format!("an IPv6 address stands in brackets, {example}{ENCODE}"));
    }
    let (host, port) = if let Some(rest) = hostport.strip_prefix('[') {
        let (address, port) =
            rest.split_once(']').ok_or("its IPv6 address lacks the closing bracket")?;
        let address = decode(address, "host")?;
        // A zone, as in fe80::1%25eth0, is no part of the address proper.
        if split_at_first(&address, '%').0.parse::<Ipv6Addr>().is_err() {
            return Err("what stands in brackets is no IPv6 address".into());
        }
        let (nothing, port) = split_at_first(port, ':');
        if !nothing.is_empty() {
            return Err("a port follows a colon".into());
        }
        (address, port)
    } else {
        let (host, port) = split_at_first(hostport, ':');
        let host = decode(host, "host")?;
        if !host.chars().all(|c| c.is_alphanumeric() || "-._~".contains(c)) {
            return Err(format!("its host name has a character that none has{ENCODE}"));
        }
        (if host.is_empty() { "localhost".into() } else { host }, port)
    };

    let port = port.filter(|port| !port.is_empty()).map(|port| {
        let port = number::<NonZeroU16>(port).map(NonZeroU16::get);
        port.ok_or_else(|| format!("its port is no number from 1 to 65535{ENCODE}"))
    });
    Ok((host, port.transpose()?))
}

/// The likeliest reason for a strange host or port.
const ENCODE: &str =
    " (a password is percent-encoded: @ as %40, / as %2F, : as %3A, # as %23, ? as %3F, % as %25)";

fn decode(text: &str, part: &str) -> Result<String, String> {
    let is_hex = |digits: &[u8]| digits.iter().all(u8::is_ascii_hexdigit);
    if !text.split('%').skip(1).all(|rest| rest.as_bytes().get(..2).is_some_and(is_hex)) {
        return Err(format!("its {part} has a % that no two hex digits follow; write it as %25"));
    }
    match percent_decode_str(text).decode_utf8() {
        Err(_) => Err(format!("its {part} is not UTF-8")),
        Ok(decoded) if decoded.contains('\0') => Err(format!("its {part} has a NUL character")),
        Ok(decoded) => Ok(decoded.into()),
    }
}

/// Parses a number in decimal digits alone; `parse` takes a plus sign too.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

fn apply(endpoint: &mut Endpoint, parameter: &str, query: &str) -> Result<(), String> {
    let (key, value) = split_at_first(parameter, '=');
    let value = decode(value.unwrap_or_default(), "query")?;
    let no_number = |most: u32| format!("its {key} is no number from 0 to {most}");
    let small = || number::<u16>(&value).ok_or_else(|| no_number(u16::MAX.into()));
    match (key, &mut endpoint.tls) {
        ("heartbeat", _) => endpoint.heartbeat = small()?,
        ("channel_max", _) => endpoint.channel_max = small()?,
        ("connection_timeout", _) => {
            let milliseconds = number::<u32>(&value).ok_or_else(|| no_number(u32::MAX))?;
            if milliseconds == 0 {
                return Err("its connection_timeout is 0, and no wait here is without end".into());
            }
            endpoint.connection_timeout = Some(Duration::from_millis(milliseconds.into()));
        }
        ("auth_mechanism", _) => match value.to_ascii_lowercase().as_str() {
            "external" => endpoint.credentials = Credentials::External,
            "plain" => {}
            _ => return Err("its auth_mechanism is neither external nor plain".into()),
        },
        ("cacertfile", Some(tls)) => tls.cacertfile = Some(value.into()),
        ("certfile", Some(tls)) => tls.certfile = Some(value.into()),
        ("keyfile", Some(tls)) => tls.keyfile = Some(value.into()),
        ("verify", Some(tls)) => match value.as_str() {
            "verify_peer" => tls.verify_none = false,
            "verify_none" => tls.verify_none = true,
            _ => return Err("its verify is neither verify_peer nor verify_none".into()),
        },
        ("server_name_indication", Some(tls)) => match value.as_str() {
            "" => return Err("its server_name_indication is empty".into()),
            // RabbitMQ's own client compares the certificate with no name then (Erlang, ssl:connect).
            "disable" => {
                return Err("its server_name_indication is disable, and a certificate is always \
                     compared with a name here; name the host that it is for"
                    .into());
            }
            _ => tls.server_name_indication = Some(value),
        },
        ("cacertfile" | "certfile" | "keyfile" | "verify" | "server_name_indication", None) => {
            return Err(format!("its {key} needs an amqps:// URI"));
        }
        _ => return Err(unknown_parameter(key, query)),
    }

    Ok(())
}

/// The query parameters that [`apply`] knows.
const PARAMETERS: [&str; 9] = [
    "heartbeat",
    "connection_timeout",
    "channel_max",
    "auth_mechanism",
    "cacertfile",
    "certfile",
    "keyfile",
    "verify",
    "server_name_indication",
];

/// Returns what is wrong with a query that has the parameter `key`, which nobody knows.
fn unknown_parameter(key: &str, query: &str) -> String {
    // What stands before an @ may be the second half of a password with a question mark in it.
    if query.contains('@') {
        return format!("it has an @ behind a question mark{ENCODE}");
    }
    let name = key.to_ascii_lowercase();
    let likeness = |known: &&str| strsim::jaro_winkler(&name, known);
    let nearest = PARAMETERS.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|known| likeness(known) > 0.7) {
        Some(known) => format!("its query parameter \"{key}\" is unknown; did you mean {known}?"),
        None => {
            format!("its query parameter \"{key}\" is unknown; there are {}", PARAMETERS.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(username: &str, password: &str) -> Credentials {
        Credentials::Plain { username: username.into(), password: password.into() }
    }

    fn one(uri: &str) -> Endpoint {
        parse(uri).unwrap_or_else(|reason| panic!("{uri}: {reason}"))
    }

    /// The appendix "Examples" of RabbitMQ's URI specification, what it calls absent being this
    /// program's default.
    #[test]
    fn the_examples_of_the_specification() {
        for (uri, username, password, host, port, vhost) in [
            ("amqp://user:pass@host:10000/vhost", "user", "pass", "host", 10000, "vhost"),
            (
                "amqp://user%61:%61pass@ho%61st:10000/v%2fhost",
                "usera",
                "apass",
                "hoast",
                10000,
                "v/host",
            ),
            ("amqp://", "guest", "guest", "localhost", 5672, "/"),
            ("amqp://:@/", "", "", "localhost", 5672, ""),
            ("amqp://user@", "user", "guest", "localhost", 5672, "/"),
            ("amqp://user:pass@", "user", "pass", "localhost", 5672, "/"),
            ("amqp://host", "guest", "guest", "host", 5672, "/"),
            ("amqp://:10000", "guest", "guest", "localhost", 10000, "/"),
            ("amqp:///vhost", "guest", "guest", "localhost", 5672, "vhost"),
            ("amqp://host/", "guest", "guest", "host", 5672, ""),
            ("amqp://host/%2f", "guest", "guest", "host", 5672, "/"),
            ("amqp://[::1]", "guest", "guest", "::1", 5672, "/"),
        ] {
            let endpoint = one(uri);
            assert!(endpoint.credentials == plain(username, password), "{uri}");
            let found = (endpoint.host.as_str(), endpoint.port, endpoint.vhost.as_str());
            assert_eq!(found, (host, port, vhost), "{uri}");
            assert!(endpoint.tls.is_none(), "{uri}");
        }
    }

    #[test]
    fn query_parameters() {
        let endpoint = one("AMQPS://host?heartbeat=5&connection_timeout=1500&channel_max=7\
             &auth_mechanism=EXTERNAL&cacertfile=/a%20b/ca.pem&certfile=c.pem&keyfile=k.pem&verify=verify_none\
             &server_name_indication=broker.example");
        assert_eq!(endpoint.port, 5671);
        assert_eq!((endpoint.heartbeat, endpoint.channel_max), (5, 7));
        assert_eq!(endpoint.connection_timeout, Some(Duration::from_millis(1_500)));
        assert!(endpoint.credentials == Credentials::External);
        let tls = Tls {
            cacertfile: Some("/a b/ca.pem".into()),
            certfile: Some("c.pem".into()),
            keyfile: Some("k.pem".into()),
            verify_none: true,
            server_name_indication: Some("broker.example".into()),
        };
        assert_eq!(endpoint.tls, Some(tls));
        assert_eq!(one("amqp://h?heartbeat=0").heartbeat, 0);
        assert_eq!(one("amqp://h").heartbeat, DEFAULT_HEARTBEAT);
        assert!(!one("amqps://h").tls.unwrap().verify_none);
    }

    #[test]
    fn an_unknown_query_parameter_is_named_with_the_nearest_one() {
        for (parameter, nearest) in [
            ("heartbeet=3", "heartbeat"),
            ("Heartbeat=3", "heartbeat"),
            ("timeout=3", ""),
            ("connect_timeout=3", "connection_timeout"),
            ("cacert=/ca.pem", "cacertfile"),
            ("sni=h", "server_name_indication"),
            ("=3", ""),
        ] {
            let reason = parse(&format!("amqps://h?verify=verify_peer&{parameter}")).unwrap_err();
            let key = parameter.split('=').next().unwrap();
            let told = match nearest {
                "" => format!("there are {}", PARAMETERS.join(", ")),
                nearest => format!("did you mean {nearest}?"),
            };
            assert_eq!(reason, format!("its query parameter \"{key}\" is unknown; {told}"));
        }
        for parameter in PARAMETERS {
            let known = parse(&format!("amqps://h?{parameter}=1"));
            assert!(known.is_ok() || !known.unwrap_err().contains("unknown"), "{parameter}");
        }
    }

    #[test]
    fn several_brokers() {
        let list = parse_list("amqp://a,amqps://u:p,w@b:1/v, AMQP://[::1]:2").unwrap();
        let shown: Vec<String> = list.iter().map(Endpoint::to_string).collect();
        assert_eq!(shown, ["amqp://a:5672", "amqps://u@b:1/v", "amqp://[::1]:2"]);
        assert!(list[1].credentials == plain("u", "p,w"));
        let error = parse_list("amqp://a,amqp://b:x").unwrap_err();
        assert!(error.to_string().starts_with("broker URI 2: its port"), "{error}");
    }

    #[test]
    fn a_list_that_is_none_is_told_what_it_lacks() {
        let bare = "its host has a comma; in a list, each URI begins with amqp:// or amqps:// (";
        for (list, reason) in [
            ("amqp://h:1,h2:2", bare),
            ("amqp://h,h2", bare),
            ("amqp://h:1,", "a comma follows it, and no other URI"),
            ("amqp://h:1,,amqp://h2", "a comma follows it, and no other URI"),
            (",amqp://h:1", "it is empty"),
            ("amqp://::1:5672", "an IPv6 address stands in brackets, as in amqp://[::1]:5672 ("),
            ("amqp://fe80::1", "an IPv6 address stands in brackets, as in amqp://[::1]:5672 ("),
        ] {
            let told = parse_list(list).unwrap_err().reason;
            assert!(told.starts_with(reason), "{list}: {told}");
        }
    }

    /// Up to its first slash, each of these is a host and a port.
    #[test]
    fn a_password_with_a_slash_is_refused() {
        for uri in [
            "amqp://guest:12/s3cret@127.0.0.1:1",
            "amqp://guest:/s3cret@127.0.0.1:1",
            "amqp://guest:1@2/s3cret@127.0.0.1:1",
            "amqp://gu/est:s3cret@127.0.0.1:1",
            "amqps://guest:12/s3cret@127.0.0.1:1/vhost?heartbeat=5",
        ] {
            let error = parse_list(uri).unwrap_err();
            let reason = format!("it has an @ behind a slash{ENCODE}");
            assert_eq!(error, UriError { number: None, reason }, "{uri}");
        }
        assert_eq!(one("amqp://guest:12%2Fs3cret@h/v%40w").vhost, "v@w");
    }

    #[test]
    fn each_uri_of_a_list_has_a_password_of_its_own() {
        for list in [
            "amqp://h1,amqp://u@h2",
            "amqp://h1:1,amqp://u@h2:2",
            "amqps://h1:1?cacertfile=/a@b,amqp://h2",
        ] {
            assert!(!has_password(list), "{list}");
        }
        for list in [
            "amqp://u:p@h1,amqp://h2",
            "amqp://h1,amqp://u:p@h2",
            "amqp://u:1/p@h",
            "amqp://u:p?@h",
        ] {
            assert!(has_password(list), "{list}");
        }
    }

    #[test]
    fn an_endpoint_shows_all_but_the_password() {
        let endpoint = one("amqp://us%40er:s3cret@h:1/v%2fh");
        assert_eq!(endpoint.to_string(), "amqp://us%40er@h:1/v%2Fh");
        assert_eq!(format!("{endpoint:?}"), "Endpoint(amqp://us%40er@h:1/v%2Fh)");
        assert_eq!(one("amqp://guest:s3cret@h/").to_string(), "amqp://h:5672/");
    }

    #[test]
    fn malformed_uris_are_refused_without_a_word_of_the_password() {
        for uri in [
            "",
            "host",
            "s3cret",
            "ftp://u:s3cret@h",
            "://u:s3cret@h",
            "amqp:/h",
            "amqp://h:0",
            "amqp://h:65536",
            "amqp://h:+1",
            "amqp://h:1a",
            "amqp://u:s3cret@h:x",
            "amqp://u:s3/cret@h",
            "amqp://u:s3cret?@h",
            "amqp://u:s3cret#@h",
            "amqp://u:s3cret%@h",
            "amqp://u:s3cret%zz@h",
            "amqp://u:s3cret%ff@h",
            "amqp://u:s3cret%00@h",
            "amqp://u:p@h,s3cret",
            "amqp://h/a/s3cret",
            "amqp://[::1",
            "amqp://[s3cret]",
            "amqp://[::1]s3cret",
            "amqp://u:1?s3cret@h",
            "amqp://u:1?s3cret=1@h/v",
            "amqp://u:1?s3cret=1&x@h",
            "amqp://h?heartbeat=s3cret",
            "amqp://h?heartbeat=65536",
            "amqp://h?heartbeat=",
            "amqp://h?connection_timeout=0",
            "amqp://h?auth_mechanism=s3cret",
            "amqp://h?verify=verify_none",
            "amqps://h?verify=s3cret",
            "amqps://h?certfile=s3cret",
            "amqp://h?server_name_indication=s3cret",
            "amqps://h?server_name_indication=",
            "amqps://h?server_name_indication=disable",
        ] {
            let told = parse_list(uri).expect_err(uri).to_string();
            assert!(!told.contains("s3"), "{uri}: {told}");
            assert!(!told.contains("cret"), "{uri}: {told}");
        }
        let long = format!("amqp://h/{}", "v".repeat(256));
        assert!(parse_list(&long).is_err());
    }
}
