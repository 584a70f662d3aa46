//! `amqps://`: what is trusted, who is let in, and what an error says.

use crate::harness::*;

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
    tls.call(&tls.url("verify=verify_none")).expect(0, "832040\n", warning);

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
