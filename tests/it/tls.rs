//! `amqps://`: what is trusted, who is let in, and what an error says.

use crate::connecting::await_names;
use crate::harness::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;

/// A node with TLS, and what its tests need of it.
pub struct Tls {
    node: Node,
    pub queue: Queue,
    /// `amqps://localhost:PORT`
    url: String,
    pub folder: String,
}

impl Tls {
    pub fn start(configuration: &str) -> Tls {
        let node = Node::configured(configuration, &["--tls"]);
        let queue = Queue::at(&node.url);
        let tls_url = node.script(&["tls-url"]);
        let url = tls_url.split('?').next().unwrap().to_owned();
        let folder = node.script(&["tls-dir"]);
        Tls { node, queue, url, folder }
    }

    /// `parameters` with `DIR` for the folder of the certificates.
    pub fn url(&self, parameters: &str) -> String {
        format!("{}?{}", self.url, parameters.replace("DIR", &self.folder))
    }

    /// `openssl` in the folder of the certificates.
    #[track_caller]
    pub fn openssl(&self, args: &str) {
        let command = args.split(' ');
        let output =
            Command::new("openssl").args(command).current_dir(&self.folder).output().unwrap();
        assert!(output.status.success(), "openssl {args}: {output:?}");
    }

    /// An RSA key in `rsa.key`, and certificates for it of both kinds: `rsa-server.pem` and `rsa-client.pem`.
    fn make_rsa(&self) {
        self.openssl("req -config openssl.cnf -new -newkey rsa:2048 -nodes -subj /CN=guest -keyout rsa.key -out rsa.csr");
        for kind in ["server", "client"] {
            let args = format!(
                "ca -config openssl.cnf -batch -notext -extensions {kind} -days 30 -in rsa.csr -out rsa-{kind}.pem"
            );
            self.openssl(&args);
        }
    }

    /// From now on the node has this certificate (RabbitMQ, "TLS Support", rotation of certificates).
    pub fn present(&self, certificate: &str, key: &str) {
        let copy = |from: &str, to: &str| {
            let folder = Path::new(&self.folder);
            std::fs::copy(folder.join(from), folder.join(to)).unwrap();
        };
        copy(certificate, "server.pem");
        copy(key, "server.key");
        self.node.eval("ssl:clear_pem_cache().");
        self.node.retire();
    }

    #[track_caller]
    pub fn call(&self, url: &str) -> Ended {
        client_at(url, &["--queue", self.queue.name(), "fib", "30"])
    }

    /// A call at `url` fails, because of `cause`.
    #[track_caller]
    pub fn refuses(&self, url: &str, code: i32, cause: &str) {
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
    // Other names of 127.0.0.1, and none that the certificate has.
    let other_host = tls.url("cacertfile=DIR/ca.pem").replace("localhost", "0.0.0.0");
    let cause = "no TLS handshake with URL: its certificate is for another host than 0.0.0.0";
    tls.refuses(&other_host, 78, cause);
    let no_name = other_host.replace("0.0.0.0", "127.1");
    let cause = "cannot use URL: no certificate can be for the host 127.1: ";
    tls.refuses(&no_name, 78, cause);
    tls.refuses(&tls.url("cacertfile=DIR/none.pem"), 78, "cannot use URL: cannot read ");
    let cause =
        format!("cannot use URL: {}/client.key (cacertfile) has no PEM certificate", tls.folder);
    tls.refuses(&tls.url("cacertfile=DIR/client.key"), 78, &cause);

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
fn each_connection_over_tls_has_a_name_in_the_brokers_list() {
    let tls = Tls::start("");
    await_names(&tls.node, &tls.queue, &tls.url("cacertfile=DIR/ca.pem"));
}

#[test]
fn certificates_of_a_broker() {
    let tls = Tls::start("");
    let url = tls.url("cacertfile=DIR/ca.pem");
    // RSA, and with it both versions again.
    tls.make_rsa();
    tls.present("rsa-server.pem", "rsa.key");
    let _server = server_at(&url, &tls.queue, &[]);
    tls.call(&url).expect(0, "832040\n", "");

    let refused = |certificate: &str, key: &str, cause: &str| {
        tls.present(certificate, key);
        tls.refuses(&url, 78, &format!("no TLS handshake with URL: {cause}"));
    };
    refused("expired.pem", "expired.key", "its certificate has expired\n");
    std::fs::write(Path::new(&tls.folder).join("no-name.cnf"), "basicConstraints = CA:FALSE\n")
        .unwrap();
    tls.openssl("x509 -req -in expired.csr -CA ca.pem -CAkey ca.key -set_serial 7 -extfile no-name.cnf -days 30 -out no-name.pem");
    let cause =
        "its certificate has no subject alternative name, and a common name is not enough\n";
    refused("no-name.pem", "expired.key", cause);
    refused("ca.pem", "ca.key", "its certificate is not accepted (");
}

#[test]
fn keys_of_a_client() {
    let tls = Tls::start("");
    tls.make_rsa();
    tls.openssl("rsa -traditional -in rsa.key -out rsa-pkcs1.key");
    tls.openssl("ec -in client.key -out sec1.key");
    tls.openssl("pkcs8 -topk8 -in client.key -passout pass:secret -out encrypted.key");
    tls.openssl("rsa -traditional -aes128 -passout pass:secret -in rsa.key -out encrypted-rsa.key");
    let in_folder = |name: &str| Path::new(&tls.folder).join(name);
    let read = |name: &str| std::fs::read_to_string(in_folder(name)).unwrap();
    std::fs::write(in_folder("both.pem"), read("sec1.key") + &read("client.pem")).unwrap();
    let beginning = |name: &str| read(name).lines().next().unwrap().to_owned();
    assert_eq!(beginning("rsa.key"), "-----BEGIN PRIVATE KEY-----");
    assert_eq!(beginning("rsa-pkcs1.key"), "-----BEGIN RSA PRIVATE KEY-----");
    assert_eq!(beginning("sec1.key"), "-----BEGIN EC PRIVATE KEY-----");

    // Who one is, is said by the certificate alone.
    let url = |certfile: &str, keyfile: &str| {
        tls.url(&format!(
            "cacertfile=DIR/ca.pem&certfile=DIR/{certfile}&keyfile=DIR/{keyfile}&auth_mechanism=external"
        ))
    };
    let _server = server_at(&url("client.pem", "client.key"), &tls.queue, &[]);
    for (certfile, keyfile) in [
        ("client.pem", "sec1.key"),
        ("rsa-client.pem", "rsa.key"),
        ("rsa-client.pem", "rsa-pkcs1.key"),
        ("both.pem", "both.pem"),
    ] {
        tls.call(&url(certfile, keyfile)).expect(0, "832040\n", "");
    }

    let refused = |certfile: &str, keyfile: &str, cause: &str| {
        let cause = format!("cannot use URL: {}", cause.replace("DIR", &tls.folder));
        tls.refuses(&url(certfile, keyfile), 78, &cause);
    };
    for keyfile in ["encrypted.key", "encrypted-rsa.key"] {
        let cause = format!(
            "DIR/{keyfile} (keyfile) is encrypted; openssl pkey -in DIR/{keyfile} -out NEW_FILE decrypts it\n"
        );
        refused("client.pem", keyfile, &cause);
    }
    let cause =
        "DIR/server.key (keyfile) is not the key of the certificate in DIR/client.pem (certfile)\n";
    refused("client.pem", "server.key", cause);
    let cause = "DIR/ca.pem (keyfile) has no PEM private key that can be read: ";
    refused("client.pem", "ca.pem", cause);
    refused("rsa.key", "rsa.key", "DIR/rsa.key (certfile) has no PEM certificate\n");
}

/// A node that speaks this version of TLS alone, and lets nobody in without a certificate.
#[track_caller]
fn a_client_certificate_is_wanted(version: &str, alert: &str) {
    let tls = Tls::start(&format!(
        "ssl_options.versions.1 = {version}\nssl_options.fail_if_no_peer_cert = true\n"
    ));
    let with = |certificate: &str| {
        tls.url(&format!(
            "cacertfile=DIR/ca.pem&certfile=DIR/{certificate}.pem&keyfile=DIR/{certificate}.key"
        ))
    };
    let url = with("client");
    let _server = server_at(&url, &tls.queue, &[]);
    tls.call(&url).expect(0, "832040\n", "");

    let cause = format!(
        "no TLS handshake with URL: it refused ({alert}); it may want a client certificate that it trusts: see certfile and keyfile\n"
    );
    // With TLS 1.3 the broker refuses while the client goes on.
    for _ in 0..20 {
        tls.refuses(&tls.url("cacertfile=DIR/ca.pem"), 78, &cause);
    }
    let cause = "no TLS handshake with URL: it refused (";
    tls.refuses(&with("other-ca"), 78, cause);
}

#[test]
fn tls_1_2_and_a_client_certificate_that_is_missing() {
    a_client_certificate_is_wanted("tlsv1.2", "HandshakeFailure");
}

#[test]
fn tls_1_3_and_a_client_certificate_that_is_missing() {
    a_client_certificate_is_wanted("tlsv1.3", "CertificateRequired");
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
