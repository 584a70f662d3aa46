//! The numbers as text: OpenMetrics, or Prometheus's older format, by the rules of
//! <https://prometheus.io/docs/practices/naming/>.

use crate::metrics::histogram::HistogramSnapshot;
use crate::metrics::{CallOutcome, Calls, DropReason, Metrics};
use crate::procedure::Procedures;
use crate::terminal::output::{self, LinesLeftOut};
use clap::ValueEnum;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0: what Prometheus asks for.
    OpenMetrics,
    /// Prometheus's text format 0.0.4: what those get who ask for nothing, and what `promtool check metrics` reads.
    Prometheus,
}

impl Format {
    /// Returns the format that the value of a header `Accept` asks for, if it is there.
    pub fn accepted(accept: Option<&str>) -> Format {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Format::OpenMetrics,
            _ => Format::Prometheus,
        }
    }

    /// Returns the value of the header `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// Returns all numbers, those that are counted elsewhere too. Nobody waits for it who answers calls.
pub fn write(metrics: &Metrics, procedures: &Procedures, format: Format) -> String {
    let mut registry = Registry::with_prefix("rpc_server");
    registry.register_collector(Box::new(Snapshot::take(metrics, procedures)));
    let mut written = String::new();
    let result = match format {
        Format::OpenMetrics => text::encode(&mut written, &registry),
        Format::Prometheus => prometheus_text::encode(&mut written, &registry),
    };
    // To write to a string never fails.
    debug_assert!(result.is_ok());
    written
}

/// The calls of one procedure at one moment.
#[derive(Debug)]
struct CallsSnapshot {
    procedure: String,
    outcomes: Vec<(CallOutcome, u64)>,
    durations: HistogramSnapshot,
}

impl CallsSnapshot {
    fn take(procedure: &str, calls: &Calls) -> CallsSnapshot {
        let outcomes = calls.outcomes.iter().map(|calls| calls.load(Relaxed));
        CallsSnapshot {
            procedure: procedure.into(),
            outcomes: CallOutcome::all().zip(outcomes).collect(),
            durations: calls.durations.snapshot(),
        }
    }
}

/// The numbers of one moment.
#[derive(Debug)]
struct Snapshot {
    calls: Vec<CallsSnapshot>,
    calls_in_progress: u64,
    calls_redelivered: u64,
    dropped: Vec<(DropReason, u64)>,
    workers: u64,
    workers_consuming: u64,
    is_connected: bool,
    reconnects: u64,
    /// By procedure.
    programs_started: Vec<(String, u64)>,
    coprocesses_started: Vec<(String, u64)>,
    left_out: LinesLeftOut,
}

impl Snapshot {
    fn take(metrics: &Metrics, procedures: &Procedures) -> Snapshot {
        let load = |number: &AtomicU64| number.load(Relaxed);
        let started = |is_coprocess| {
            let started =
                procedures.started().filter(|started| started.is_coprocess == is_coprocess);
            started.map(|started| (started.procedure.to_owned(), started.programs)).collect()
        };
        Snapshot {
            calls: metrics
                .calls
                .iter()
                .map(|(name, calls)| CallsSnapshot::take(name, calls))
                .collect(),
            calls_in_progress: load(&metrics.calls_in_progress),
            calls_redelivered: load(&metrics.calls_redelivered),
            dropped: DropReason::value_variants()
                .iter()
                .map(|reason| (*reason, load(&metrics.dropped[*reason as usize])))
                .collect(),
            workers: metrics.workers,
            workers_consuming: load(&metrics.workers_consuming),
            is_connected: metrics.is_connected.load(Relaxed),
            reconnects: load(&metrics.connections).saturating_sub(1),
            programs_started: started(false),
            coprocesses_started: started(true),
            left_out: output::lines_left_out(),
        }
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        families.info("build", "The version of the program.", &version)?;
        self.encode_calls(&mut families)?;
        self.encode_connection(&mut families)?;
        self.encode_programs(&mut families)?;
        families.counters(
            "lines_left_out",
            "Lines of the log (stderr) and the transcript (stdout) that nobody read, and that were left out.",
            [("stderr", self.left_out.stderr), ("stdout", self.left_out.stdout)]
                .into_iter()
                .map(|(stream, lines)| ([("stream", stream)], lines)),
        )
    }
}

impl Snapshot {
    fn encode_calls(&self, families: &mut Families<'_>) -> fmt::Result {
        families.counters(
            "calls",
            "Calls that have ended, by procedure and by how they have ended.",
            self.calls.iter().flat_map(|calls| {
                calls.outcomes.iter().map(|(outcome, ended)| {
                    let procedure = ("procedure", calls.procedure.as_str());
                    ([procedure, ("outcome", outcome.name())], *ended)
                })
            }),
        )?;
        families.histograms(
            "call_duration",
            "How long calls took in the server, without their time in the queue.",
            &Unit::Seconds,
            self.calls.iter().map(|CallsSnapshot { procedure, durations, .. }| {
                ([("procedure", procedure.as_str())], durations)
            }),
        )?;
        families.gauge("calls_in_progress", "Calls under way.", self.calls_in_progress)?;
        families.counter(
            "calls_redelivered",
            "Calls of requests that had been delivered before, to this server or another one.",
            self.calls_redelivered,
        )?;
        families.counters(
            "requests_dropped",
            "Requests that got no answer, by reason.",
            self.dropped.iter().map(|(reason, requests)| ([("reason", reason.name())], *requests)),
        )
    }

    fn encode_connection(&self, families: &mut Families<'_>) -> fmt::Result {
        families.gauge("workers", "Workers that there are to be.", self.workers)?;
        families.gauge("workers_consuming", "Workers that consume.", self.workers_consuming)?;
        families.gauge(
            "connected",
            "Whether the server is connected to a broker: 1 or 0.",
            self.is_connected.into(),
        )?;
        families.counter("reconnects", "Connections after the first one.", self.reconnects)
    }

    fn encode_programs(&self, families: &mut Families<'_>) -> fmt::Result {
        fn by_procedure(
            started: &[(String, u64)],
        ) -> impl Iterator<Item = ([(&'static str, &str); 1], u64)> {
            started.iter().map(|(name, count)| ([("procedure", name.as_str())], *count))
        }
        families.counters(
            "programs_started",
            "Programs that were started for a call, by procedure.",
            by_procedure(&self.programs_started),
        )?;
        families.counters(
            "coprocesses_started",
            "Programs that stay and were started, by procedure.",
            by_procedure(&self.coprocesses_started),
        )
    }
}

/// Writes families of numbers. A family that has none is left out.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn info(&mut self, name: &str, help: &str, labels: &impl EncodeLabelSet) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut values = values.peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            let mut one = family.encode_family(&labels)?;
            one.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        Ok(())
    }

    fn histograms<'s, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        values: impl Iterator<Item = (L, &'s HistogramSnapshot)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, Some(unit), MetricType::Histogram)?;
        for (labels, HistogramSnapshot { buckets, count, sum }) in values {
            let mut one = family.encode_family(&labels)?;
            one.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)?;
        }
        Ok(())
    }
}
