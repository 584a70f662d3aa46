//! What a call costs apart from the broker: computing, making and reading messages, and asking a program that stays.
//! `cargo bench` runs it.

use amiquip::AmqpProperties;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fib_rpc::cancellation::CallHandle;
use fib_rpc::command::{About, Invocation};
use fib_rpc::coprocess::Protocol;
use fib_rpc::fib::{Algorithm, fib};
use fib_rpc::procedure::{Offer, Offered, Procedures, Settings};
use fib_rpc::protocol::{Reply, ReplyFormat, Request};
use std::hint::black_box;
use std::time::{Duration, Instant};

fn fibonacci(c: &mut Criterion) {
    let mut group = c.benchmark_group("fib");
    group.sample_size(10);
    for (algorithm, arguments) in [
        (Algorithm::FastDoubling, &[30, 1_000, 10_000, 100_000, 1_000_000][..]),
        (Algorithm::Iterative, &[30, 1_000, 10_000, 100_000]),
        (Algorithm::Recursive, &[30]),
    ] {
        for n in arguments {
            let id = BenchmarkId::new(format!("{algorithm:?}"), n);
            group.bench_with_input(id, n, |b, n| b.iter(|| fib(black_box(*n), algorithm)));
        }
    }
    let million = fib(1_000_000, Algorithm::FastDoubling);
    group.bench_function("million to decimal", |b| b.iter(|| black_box(&million).to_string()));
    group.finish();
}

fn messages(c: &mut Criterion) {
    let request = Request {
        procedure: "fib",
        argument: b"30",
        reply_to: Some("amq.gen-tCFeLOkB8Dvmp7vpKkzqHA"),
        correlation_id: Some("67e55044-10b1-426f-9247-bb680e5fe0c8"),
        expiration: Some(Duration::from_secs(30)),
        ..Request::default()
    };
    c.bench_function("request to message", |b| b.iter(|| black_box(&request).to_publish("queue")));
    let published = request.to_publish("queue").properties;
    c.bench_function("message to request", |b| {
        b.iter(|| Request::decode(black_box(&published), b"30"));
    });
    let format = ReplyFormat { content_type: None, most: 100 };
    let reply = Reply::for_request(&request, Ok(b"832040".to_vec()), format);
    c.bench_function("reply to message", |b| b.iter(|| black_box(&reply).to_publish("queue")));
    let properties: AmqpProperties = reply.to_publish("queue").properties;
    c.bench_function("message to reply", |b| {
        b.iter(|| Reply::decode(black_box(&properties), b"832040".to_vec()));
    });
}

/// What a call to a program that stays costs, with two changes from one process to another in it.
fn coprocesses(c: &mut Criterion) {
    let settings =
        Settings { algorithm: Algorithm::FastDoubling, max_n: 1_000, coprocess_calls: None };
    let offer = |text: &str| {
        Offer::parse_command(text, |words| Offered::Coprocess(Protocol::Text, words)).unwrap()
    };
    let procedures = Procedures::new(&[offer("cat=cat")], settings).unwrap();
    procedures.start(1, Duration::from_secs(2)).unwrap();
    let handle = CallHandle::default();
    let invocation = Invocation {
        input: b"30",
        about: About::default(),
        most: 1_000,
        deadline: Some(Instant::now() + Duration::from_secs(3_600)),
        kill_delay: Duration::from_secs(2),
        handle: &handle,
        at_stop: &|| {},
    };
    c.bench_function("coprocess", |b| b.iter(|| procedures.call("cat", &invocation)));
    procedures.end(1, Duration::from_secs(2));
}

criterion_group!(benches, fibonacci, messages, coprocesses);
criterion_main!(benches);
