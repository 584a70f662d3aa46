//! What a broker's certificate is for, and the keys that it can have.

use crate::harness::*;
use crate::tls::Tls;
use std::path::Path;

/// As behind a tunnel, where the broker's name leads to another host.
#[test]
fn the_name_that_a_certificate_is_for() {
    let tls = Tls::start("");
    let through_a_tunnel = |parameters: &str| {
        let parameters = format!("cacertfile=DIR/ca.pem{parameters}");
        tls.url(&parameters).replacen("localhost", "0.0.0.0", 1)
    };
    let cause = "no TLS handshake with URL: its certificate is for another host than 0.0.0.0; behind a tunnel, server_name_indication in the URI names the host\n";
    tls.refuses(&through_a_tunnel(""), 78, cause);
    let url = through_a_tunnel("&server_name_indication=localhost");
    let _server = server_at(&url, &tls.queue, &[]);
    tls.call(&url).expect(0, "832040\n", "");

    // It is what counts, also where the host would be right.
    let url = tls.url("cacertfile=DIR/ca.pem&server_name_indication=wrong.example");
    let cause = "no TLS handshake with URL: its certificate is for another host than wrong.example (server_name_indication)\n";
    tls.refuses(&url, 78, cause);
    let url = tls.url("cacertfile=DIR/ca.pem&server_name_indication=127.1");
    let cause = "cannot use URL: no certificate can be for the server_name_indication 127.1: it is no DNS name and no IP address\n";
    tls.refuses(&url, 78, cause);
    let url = tls.url("cacertfile=DIR/ca.pem&server_name_indication=disable");
    let cause = "rpc_client: broker URI (--url or AMQP_URL): its server_name_indication is disable, and a certificate is always compared with a name here; name the host that it is for\n";
    tls.call(&url).expect(78, "", cause);
}

const KEYS: &str = "the key of a certificate has to be RSA with 2,048 to 8,192 bits, ECDSA P-256 or P-384, or Ed25519 (not P-521, nor shorter RSA)\n";

/// Makes `NAME.pem`, `NAME.key`, for the host localhost, with a key that `newkey` describes to openssl req.
fn make(tls: &Tls, name: &str, newkey: &str) {
    tls.openssl(&format!(
        "req -config openssl.cnf -new -newkey {newkey} -nodes -subj /CN=localhost -keyout {name}.key -out {name}.csr"
    ));
    tls.openssl(&format!(
        "ca -config openssl.cnf -batch -notext -extensions server -days 30 -in {name}.csr -out {name}.pem"
    ));
}

/// Whether a broker speaks this version or the other, it either finds nothing in what the client offers that it could
/// sign by, or signs all the same, in a way that the client cannot check.
#[track_caller]
fn keys_that_cannot_be_used(version: &str) {
    let tls = Tls::start(&format!("ssl_options.versions.1 = {version}\n"));
    for (name, newkey, kind) in [
        ("p521", "ec -pkeyopt ec_paramgen_curve:P-521", "ECDSA P-521"),
        ("rsa1024", "rsa:1024", "RSA with fewer than 2,048 bits"),
    ] {
        make(&tls, name, newkey);
        tls.present(&format!("{name}.pem"), &format!("{name}.key"));
        let causes = [
            format!("the key of its certificate is {kind}, which cannot be used; {KEYS}"),
            format!("it refused all that this program can use (HandshakeFailure); {KEYS}"),
            format!("it refused all that this program can use (InsufficientSecurity); {KEYS}"),
        ];
        // Whoever need not prove who it is signs all the same.
        for url in [tls.url("cacertfile=DIR/ca.pem"), tls.url("verify=verify_none")] {
            let ended = tls.call(&url);
            assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{ended:?}");
            assert!(causes.iter().any(|cause| ended.stderr.ends_with(cause)), "{ended:?}");
        }
    }

    let names = "basicConstraints = CA:FALSE\nsubjectAltName = DNS:localhost\n";
    std::fs::write(Path::new(&tls.folder).join("leaf.cnf"), names).unwrap();
    // An authority's: with P-521 that is sure, with RSA it can be another one of the same name.
    for (name, newkey) in
        [("p521-ca", "ec -pkeyopt ec_paramgen_curve:P-521"), ("rsa1024-ca", "rsa:1024")]
    {
        tls.openssl(&format!(
            "req -x509 -newkey {newkey} -nodes -subj /CN={name} -keyout {name}.key -out {name}.pem"
        ));
        tls.openssl(&format!(
            "x509 -req -in expired.csr -CA {name}.pem -CAkey {name}.key -set_serial 7 -days 30 -extfile leaf.cnf -out by-{name}.pem"
        ));
        tls.present(&format!("by-{name}.pem"), "expired.key");
        let ended = tls.call(&tls.url(&format!("cacertfile=DIR/{name}.pem")));
        assert!(ended.code() == 78 && ended.stderr.contains(KEYS.trim_end()), "{ended:?}");
    }

    // A client's.
    let url = |name: &str| {
        tls.url(&format!("cacertfile=DIR/ca.pem&certfile=DIR/{name}.pem&keyfile=DIR/{name}.key"))
    };
    for name in ["p521", "rsa1024"] {
        let ended = tls.call(&url(name));
        assert!(ended.code() == 78 && ended.stderr.ends_with(KEYS), "{ended:?}");
        assert!(ended.stderr.contains(&format!("/{name}.key (keyfile): ")), "{ended:?}");
    }

    // Those that can.
    for (name, newkey) in [("p384", "ec -pkeyopt ec_paramgen_curve:P-384"), ("rsa2048", "rsa:2048")]
    {
        make(&tls, name, newkey);
        tls.present(&format!("{name}.pem"), &format!("{name}.key"));
        let url = tls.url("cacertfile=DIR/ca.pem");
        let told = format!(
            "rpc_client: fib: there is no queue \"{}\" on {}",
            tls.queue.name(),
            shown(&url)
        );
        let ended = tls.call(&url);
        assert!(ended.code() == 69 && ended.stderr.starts_with(&told), "{ended:?}");
    }
}

#[test]
fn keys_that_cannot_be_used_with_tls_1_2() {
    keys_that_cannot_be_used("tlsv1.2");
}

#[test]
fn keys_that_cannot_be_used_with_tls_1_3() {
    keys_that_cannot_be_used("tlsv1.3");
}
