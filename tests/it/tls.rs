//! `amqps://`: what is trusted, who is let in, and what an error says.

use crate::harness::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

/// A node with TLS, and what its tests need of it.
struct Tls {
    node: Node,
    queue: Queue,
    /// `amqps://localhost:PORT`
    url: String,
    folder: String,
}

impl Tls {
    fn start(configuration: &str) -> Tls {
        let node = Node::configured(configuration, &["--tls"]);
        let queue = Queue::at(&node.url);
        let tls_url = node.script(&["tls-url"]);
        let url = tls_url.split('?').next().unwrap().to_owned();
        let folder = node.script(&["tls-dir"]);
        Tls { node, queue, url, folder }
    }

    /// `parameters` with `DIR` for the folder of the certificates.
    fn url(&self, parameters: &str) -> String {
        format!("{}?{}", self.url, parameters.replace("DIR", &self.folder))
    }

    #[track_caller]
    fn call(&self, url: &str) -> Ended {
        client_at(url, &["--queue", self.queue.name(), "fib", "30"])
    }

    /// A call at `url` fails, because of `cause`.
    #[track_caller]
    fn refuses(&self, url: &str, code: i32, cause: &str) {
        let ended = self.call(url);
        assert_eq!((ended.code(), ended.stdout.as_str()), (code, ""), "{ended:?}");
        let at = shown(url);
        let expected = format!("rpc_client: fib: {}", cause.replace("URL", &at));
        assert!(ended.stderr.starts_with(&expected), "{ended:?} is not {expected}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}

#[test]
fn both_programs_over_tls() {
    let tls = Tls::start("");
    let url = tls.url("cacertfile=DIR/ca.pem");
    let _server = server_at(&url, &tls.queue, &[]);
    tls.call(&url).expect(0, "832040\n", "");
    let large = tls.queue.name();
    let ended = client_at(&url, &["--queue", large, "fib", "1000000"]);
    assert_eq!((ended.code(), ended.stdout.len()), (0, 208_989));

    // The client certificate says who one is; no password.
    let external = "cacertfile=DIR/ca.pem&certfile=DIR/client.pem&keyfile=DIR/client.key&auth_mechanism=external";
    tls.call(&tls.url(external)).expect(0, "832040\n", "");
    let users = tls.node.ctl(&["list_connections", "auth_mechanism"]);
    assert!(users.contains("PLAIN"), "{users}");

    let warning = "rpc_client: verify=verify_none is unsafe: anybody on the way can read the password and the calls\n";
    let unsafe_url = tls.url("verify=verify_none");
    tls.call(&unsafe_url).expect(0, "832040\n", warning);
    // Every time.
    let args = ["-q", "--queue", tls.queue.name(), "fib", "30"];
    client_at(&unsafe_url, &args).expect(0, "832040\n", warning);

    let untrusted = "no TLS handshake with URL: no authority that is trusted here signed its certificate; cacertfile names one";
    tls.refuses(&tls.url(""), 78, untrusted);
    let server = Process::spawn(&mut server_command(&tls.url(""), &[])).wait();
    let said = format!("rpc_server: {}\n", untrusted.replace("URL", &shown(&tls.url(""))));
    server.expect(78, "", &said);
    tls.refuses(&tls.url("cacertfile=DIR/other-ca.pem"), 78, untrusted);
    // Another name of 127.0.0.1, and none that the certificate has.
    let other_host = tls.url("cacertfile=DIR/ca.pem").replace("localhost", "127.1");
    let cause = "no TLS handshake with URL: its certificate is for another host than 127.1";
    tls.refuses(&other_host, 78, cause);
    tls.refuses(&tls.url("cacertfile=DIR/none.pem"), 78, "cannot use URL: cannot read ");
    let cause =
        format!("cannot use URL: {}/client.key (cacertfile) has no PEM certificate", tls.folder);
    tls.refuses(&tls.url("cacertfile=DIR/client.key"), 78, &cause);
    let cause = format!(
        "cannot use URL: {0}/client.pem (certfile) and {0}/ca.pem (keyfile, PKCS #8): ",
        tls.folder
    );
    tls.refuses(&tls.url("certfile=DIR/client.pem&keyfile=DIR/ca.pem"), 78, &cause);

    // The wrong kind of port, both ways.
    let plain_on_tls = tls.url.replace("amqps://", "amqp://");
    let cause = "no AMQP handshake with URL: what answers there wants TLS: is it an amqps:// port?";
    tls.refuses(&plain_on_tls, 69, cause);
    let tls_on_plain = tls.node.url.replace("amqp://", "amqps://");
    let cause =
        "no TLS handshake with URL: what answers there speaks no TLS: is it an amqp:// port?";
    tls.refuses(&tls_on_plain, 69, cause);
}

#[test]
fn a_certificate_that_has_expired() {
    let tls = Tls::start(
        "ssl_options.certfile = tls/expired.pem\nssl_options.keyfile = tls/expired.key\n",
    );
    let cause = "no TLS handshake with URL: its certificate has expired";
    tls.refuses(&tls.url("cacertfile=DIR/ca.pem"), 78, cause);
}

#[test]
fn a_client_certificate_that_is_missing() {
    let tls = Tls::start("ssl_options.fail_if_no_peer_cert = true\n");
    tls.refuses(
        &tls.url("cacertfile=DIR/ca.pem"),
        78,
        "URL ended the connection after the TLS handshake; most likely it wants a client certificate",
    );
    let url = tls.url("cacertfile=DIR/ca.pem&certfile=DIR/client.pem&keyfile=DIR/client.key");
    let _server = server_at(&url, &tls.queue, &[]);
    tls.call(&url).expect(0, "832040\n", "");
}

/// A peer that answers a client's first message (RFC 5246, section 7.4.1.2) with these bytes.
#[track_caller]
fn speaks_an_old_version(answer: &'static [u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqps://localhost:{}", listener.local_addr().unwrap().port());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let stderr = format!(
        "rpc_client: fib: no TLS handshake with {url}: it offers no version of TLS that this \
         program accepts (1.2 and 1.3)\n"
    );
    client_at(&url, &["fib", "30"]).expect(78, "", &stderr);
}

#[test]
fn a_peer_with_an_old_version_of_tls() {
    // A fatal alert, protocol_version.
    speaks_an_old_version(b"\x15\x03\x01\0\x02\x02\x46");
    // A ServerHello of TLS 1.0.
    speaks_an_old_version(
        b"\x16\x03\x01\0\x2a\x02\0\0\x26\x03\x01\
          01234567890123456789012345678901\0\0\x2f\0",
    );
}
