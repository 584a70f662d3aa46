//! What a program tells of an error of [`amqp`](crate::amqp), which knows neither options nor exit codes: the sentence
//! with the remedy, in the words of the command line, and the [`FailureKind`]. `sentence` has what is told of each [`Remedy`].

use crate::amqp::connection::OpenConnection;
use crate::amqp::errors::{AmqpError, AmqpErrorKind, OpenError, Remedy};
use crate::amqp::uri::UriError;
use crate::error::{Failure, FailureKind, ProgramError};
use log::info;

impl From<AmqpErrorKind> for FailureKind {
    fn from(kind: AmqpErrorKind) -> FailureKind {
        match kind {
            AmqpErrorKind::BrokerUnreachable => FailureKind::BrokerUnreachable,
            AmqpErrorKind::AccessRefused => FailureKind::AccessRefused,
            AmqpErrorKind::Configuration => FailureKind::Configuration,
            AmqpErrorKind::QueueMissing => FailureKind::QueueMissing,
            AmqpErrorKind::ExchangeMissing => FailureKind::ExchangeMissing,
            AmqpErrorKind::QueueUnusable => FailureKind::QueueUnusable,
            AmqpErrorKind::TooLarge { limit } => FailureKind::TooLarge { limit },
            AmqpErrorKind::Blocked => FailureKind::Blocked,
            AmqpErrorKind::ConnectionLost => FailureKind::ConnectionLost,
            AmqpErrorKind::Internal => FailureKind::Internal,
        }
    }
}

/// Adds the remedy to what is wrong.
impl From<AmqpError> for Failure {
    fn from(AmqpError { kind, message, remedy }: AmqpError) -> Failure {
        let remedy = remedy.map(|remedy| sentence(&remedy)).unwrap_or_default();
        Failure::new(kind.into(), message + &remedy)
    }
}

impl From<AmqpError> for ProgramError {
    fn from(error: AmqpError) -> ProgramError {
        Failure::from(error).into()
    }
}

/// Joins the errors of all brokers that were tried, each with its remedy.
impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        let kind = error.kind().into();
        let attempts = error.attempts.into_iter().map(|error| Failure::from(error).message);
        Failure::new(kind, attempts.collect::<Vec<_>>().join("; and "))
    }
}

/// Adds where the URI comes from: the option or the environment variable.
impl From<UriError> for Failure {
    fn from(UriError { number, reason }: UriError) -> Failure {
        let which = number.map(|number| format!(" {number}")).unwrap_or_default();
        let message = format!("broker URI{which} (--url or AMQP_URL): {reason}");
        Failure::new(FailureKind::Configuration, message)
    }
}

impl From<UriError> for ProgramError {
    fn from(error: UriError) -> ProgramError {
        Failure::from(error).into()
    }
}

/// Logs why there is no connection to the brokers that stand before this one in the list.
pub fn log_failed_attempts(connection: &OpenConnection) {
    for error in connection.failed_attempts() {
        info!("{}", Failure::from(error.clone()));
    }
}

/// Returns what a sentence about an error goes on with, to tell what helps.
fn sentence(remedy: &Remedy) -> String {
    let sentence = match remedy {
        Remedy::StartBroker => "; is RabbitMQ running there? (--url or AMQP_URL names another)",
        Remedy::CheckAddress => "; check host and port in --url or AMQP_URL",
        Remedy::AllowMoreTime { is_in_login: false } => {
            "; is RabbitMQ listening there? (--connect-timeout allows more)"
        }
        Remedy::AllowMoreTime { is_in_login: true } => {
            "; is RabbitMQ listening there? (--connect-timeout allows more); \
             RabbitMQ takes its time to refuse credentials: check them too"
        }
        Remedy::CheckCredentialsIfRepeated => "; if it goes on to, check user and password",
        Remedy::CheckPassword => {
            "; check user and password in --url or AMQP_URL; RabbitMQ lets guest in from localhost only"
        }
        Remedy::CheckClientCertificate => {
            "; check the client certificate, and that a user has its name"
        }
        Remedy::GrantPermissions => "; rabbitmqctl set_permissions gives access",
        Remedy::AddVhost(vhost) => {
            return format!("; rabbitmqctl add_vhost {vhost} makes it, the URI names another");
        }
        Remedy::OmitSlash => {
            "; the URI ends with a slash, which names the vhost \"\": without it the default vhost / is meant"
        }
        Remedy::RaiseChannelMax => {
            ": see channel_max in the URI or on the broker (each of the server's --workers needs one)"
        }
        Remedy::DeclareExchange => "; declare it first, or name another with --bind",
        Remedy::NameAnotherQueue => "; name another with --queue",
        Remedy::DeleteQueue => {
            "; it exists already, declared in another way: delete it, or name another vhost in the URI"
        }
        Remedy::AckSooner => {
            "; keep --time-limit below the broker's consumer_timeout, or raise that"
        }
        Remedy::FreeResources => "; free its memory or disk",
    };

    sentence.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::uri;

    #[test]
    fn an_error_is_told_with_what_helps() {
        let message = "cannot reach amqp://h:5672: Connection refused (os error 111)";
        let error = AmqpError::new(AmqpErrorKind::BrokerUnreachable, message);
        assert_eq!(Failure::from(error.clone()).message, message);
        let told = Failure::from(error.with_remedy(Remedy::StartBroker));
        let remedy = "; is RabbitMQ running there? (--url or AMQP_URL names another)";
        assert_eq!(
            told,
            Failure::new(FailureKind::BrokerUnreachable, format!("{message}{remedy}"))
        );
    }

    #[test]
    fn of_several_brokers_each_is_told_and_the_kind_is_that_of_the_first_that_was_reached() {
        let away = AmqpError::new(AmqpErrorKind::BrokerUnreachable, "cannot reach a")
            .with_remedy(Remedy::StartBroker);
        let refused = AmqpError::new(AmqpErrorKind::AccessRefused, "b refused the credentials");
        let wrong = AmqpError::new(AmqpErrorKind::Configuration, "c has no vhost \"v\"")
            .with_remedy(Remedy::AddVhost("v".into()));
        let failure = Failure::from(OpenError { attempts: vec![away.clone(), refused, wrong] });
        assert_eq!(failure.kind, FailureKind::AccessRefused);
        assert_eq!(
            failure.message,
            "cannot reach a; is RabbitMQ running there? (--url or AMQP_URL names another); and \
             b refused the credentials; and \
             c has no vhost \"v\"; rabbitmqctl add_vhost v makes it, the URI names another"
        );
        let failure = Failure::from(OpenError { attempts: vec![away] });
        assert_eq!(failure.kind, FailureKind::BrokerUnreachable);
    }

    #[test]
    fn a_wrong_uri_is_told_with_where_it_comes_from() {
        let told = |list| Failure::from(uri::parse_list(list).unwrap_err()).message;
        let reason = "it does not begin with amqp:// or amqps://";
        assert_eq!(told("host"), format!("broker URI (--url or AMQP_URL): {reason}"));
        let reason = "a comma follows it, and no other URI";
        assert_eq!(
            told("amqp://a,amqp://b,"),
            format!("broker URI 2 (--url or AMQP_URL): {reason}")
        );
    }
}
