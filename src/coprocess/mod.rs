//! Programs that stay: each is started with the server, and answers one call after another, a line for a line. The Unix
//! word is coprocess (ksh, bash, gawk).
//!
//! During a call the worker's thread has the program, and waits with poll(2) as it does for one of the call's own. An
//! answer is known by its place alone: what comes after a request, and is a line, answers it. So no program is asked again
//! from which an answer may still come: after a time limit, a lost connection or a line that is no reply, it is ended,
//! and another one started.

mod instance;
mod pool;
mod protocol;

pub use pool::end_all;
pub use protocol::{Outcome, Protocol};

use crate::command::{Command, Descendants, End, Ended, Invocation, Listener, how_it_ended};
use crate::error::{ErrorKind, Failure};
use instance::{Asked, Instance, Why};
use log::warn;
pub use pool::Pool;
use pool::{Lease, Refused};
use std::io;
use std::sync::Arc;

/// What is likely if a program has never written anything, and the cures.
const BUFFERED: &str = "it has never written anything: it may keep its output in a buffer, which stdbuf -oL, python3 -u, \
     sed -u, jq --unbuffered or fflush() in awk prevent";

/// A procedure that is a program which stays.
pub struct Coprocess {
    /// Its programs.
    pub pool: Arc<Pool>,
    protocol: Protocol,
    /// After how many calls a program is replaced. None: it never is.
    most_calls: Option<u64>,
}

impl Coprocess {
    /// Returns the coprocess that is the procedure `name`. Its programs, which are not started yet, will be among
    /// `programs`, and each is replaced after `most_calls`, if that is given.
    pub fn new(
        name: &str,
        command: Command,
        protocol: Protocol,
        most_calls: Option<u64>,
        programs: &Descendants,
    ) -> Coprocess {
        Coprocess { pool: Arc::new(Pool::new(name, command, programs)), protocol, most_calls }
    }

    /// Answers a call by one of the programs. The error says how that one has ended instead, or why it was ended.
    pub fn call(&self, invocation: &Invocation<'_>) -> Result<Outcome, Ended> {
        // Before there is need of a program.
        if let Err(error) = self.protocol.check(&self.pool.name, invocation.input) {
            return Ok(Err(error));
        }

        let mut listener = Listener::new(invocation);
        loop {
            let mut lease = match self.pool.lease(invocation, &mut listener) {
                Ok(lease) => lease,
                Err(Refused::Error(error)) => return Ok(Err(error)),
                Err(Refused::End(end)) => return Err(ended(end)),
            };
            // Should this thread panic, it is in nobody's hands, and killed.
            let Some(mut instance) = lease.place.instance.take() else { continue };
            let asked = self.ask(&mut instance, invocation, &mut listener);
            let asked =
                asked.unwrap_or_else(|error| Asked::Failed(Why::End(End::unobserved(error))));
            return match asked {
                Asked::Answered(outcome) => Ok(self.answered(lease, instance, outcome, invocation)),
                Asked::Failed(why) => self.failed(lease, instance, why, invocation, &mut listener),
                // It is looked after when it is taken the next time.
                Asked::Untouched => {
                    lease.place.instance = Some(instance);
                    continue;
                }
            };
        }
    }

    fn ask(
        &self,
        instance: &mut Instance,
        invocation: &Invocation<'_>,
        listener: &mut Listener<'_>,
    ) -> io::Result<Asked<Outcome>> {
        let request = self.protocol.request(invocation);
        let longest = self.protocol.longest_reply(invocation.most);
        Ok(match instance.ask(&request, longest, invocation, listener)? {
            Asked::Answered(line) => match self.protocol.reply(line, invocation.most) {
                Ok(outcome) => Asked::Answered(outcome),
                Err(reason) => Asked::Failed(Why::NoReply(reason)),
            },
            Asked::Untouched => Asked::Untouched,
            Asked::Failed(why) => Asked::Failed(why),
        })
    }

    /// Gives back a program that has answered.
    fn answered(
        &self,
        mut lease: Lease,
        mut instance: Instance,
        outcome: Outcome,
        invocation: &Invocation<'_>,
    ) -> Outcome {
        instance.answered += 1;
        lease.note_answer();
        let stderr = &instance.running().stderr;
        let outcome = outcome.map_err(|error| Failure { stderr: stderr.text_of_tail(), ..error });
        match self.most_calls {
            Some(most) if most <= instance.answered => {
                lease.replace(instance, invocation.kill_delay)
            }
            _ => lease.place.instance = Some(instance),
        }
        outcome
    }

    /// Ends a program that has not answered, if it has not ended by itself, and starts another one. Returns what its end
    /// means.
    fn failed(
        &self,
        mut lease: Lease,
        mut instance: Instance,
        why: Why,
        invocation: &Invocation<'_>,
        listener: &mut Listener<'_>,
    ) -> Result<Outcome, Ended> {
        if !matches!(why, Why::Ended) {
            // What cannot be waited for is killed when it is dropped.
            let _ = instance.terminate(invocation.kill_delay, listener);
        }
        let meaning = self.meaning(why, &mut lease, &mut instance);
        let (last_line, stderr) = instance.running().stderr.end();
        drop(instance);
        lease.start();
        match (meaning, last_line) {
            // The reason is likelier there than in what is told of those that write nothing.
            (Ok(error), Some(line)) if error.kind == ErrorKind::TimedOut => {
                let name = &self.pool.name;
                let message =
                    format!("{name} did not answer in time; its standard error says: {line}");
                Ok(Err(Failure { message, stderr, ..error }))
            }
            (Ok(error), _) => Ok(Err(Failure { stderr, ..error })),
            (Err(end), last_line) => Err(Ended { end, last_line, stderr }),
        }
    }

    /// Returns the error that there is instead of an answer, or the end which means what it means of any program. Tells
    /// the log of what the caller's error does not say.
    fn meaning(
        &self,
        why: Why,
        lease: &mut Lease,
        instance: &mut Instance,
    ) -> Result<Failure<ErrorKind>, End> {
        let name = &self.pool.name;
        let (kind, message) = match why {
            Why::Ended => return self.meaning_of_end(lease, instance),
            Why::End(End::TimedOut) if instance.has_written() => {
                (ErrorKind::TimedOut, format!("{name} did not answer in time"))
            }
            Why::End(End::TimedOut) => {
                (ErrorKind::TimedOut, format!("{name} did not answer in time; {BUFFERED}"))
            }
            Why::End(end) => return Err(end),
            Why::Closed(fault) => {
                lease.note_end(fault, instance.answered > 0);
                (ErrorKind::Internal, format!("{name} {fault}"))
            }
            Why::NoReply(reason) => {
                let message = format!("{name} has answered with what is no reply: {reason}");
                warn!("{message}; it is started again");
                (ErrorKind::Internal, message)
            }
        };
        Ok(Failure::new(kind, message))
    }

    /// The same of a program that has ended by itself.
    fn meaning_of_end(
        &self,
        lease: &mut Lease,
        instance: &mut Instance,
    ) -> Result<Failure<ErrorKind>, End> {
        let finished = instance.finish();
        let how = match &finished {
            Ok(status) => how_it_ended(*status),
            Err(error) => format!("has ended: {error}"),
        };
        lease.note_end(&how, instance.answered > 0);
        match finished {
            Ok(status) if status.success() => {
                let message = format!("{} ended before it had answered", self.pool.name);
                Ok(Failure { exit_code: Some(0), ..Failure::new(ErrorKind::Internal, message) })
            }
            Ok(status) => Err(End::Exited(status, Vec::new())),
            Err(error) => Err(End::Unobserved(error)),
        }
    }
}

/// Returns how a call has ended that no program was asked for.
fn ended(end: End) -> Ended {
    Ended { end, last_line: None, stderr: None }
}
