//! Hosts that are resolved when a request names them: ServiceEntries with resolution DYNAMIC_DNS, and unknown hosts of
//! forward proxies.
//!
//! Each worker keeps answers for as long as they hold. What it doesn't know, one task asks for, once for all workers, and
//! leaves out the addresses that nobody may connect to.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::dns::{Answer, Families, Lookup};
use crate::egress::{Egress, is_ours};

/// Questions of all workers that wait for the task.
const MAX_WAITING: usize = 1_024;
/// Queries under way at once.
const MAX_QUERIES: usize = 100;
/// Time for one name.
const QUERY_TIMEOUT: Duration = Duration::from_secs(15);
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 16;
/// Names that a worker keeps.
const MAX_NAMES: usize = 10_000;
/// Answers hold at least and at most for this long. A name that has moved is found before long, whatever its owner says.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(300);
/// How long it is believed that a name has no address, or none that may be used.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// Why there is no address to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved {
    /// The name doesn't exist, has no address, or nobody knows in time.
    NoAddress,
    /// All its addresses are such that nobody may connect to them.
    Forbidden,
    /// It leads back to this gateway.
    Loop,
}

/// An address, and whether it is one of this machine.
type Found = (IpAddr, bool);

/// What is known of a name: its addresses, or why there are none.
type Known = Result<Arc<[Found]>, Unresolved>;

/// A question of a worker.
#[derive(Debug)]
pub struct Question {
    name: Arc<str>,
    reply: oneshot::Sender<(Known, Instant)>,
}

/// Asks the one task that resolves names on demand.
#[derive(Debug, Clone)]
pub struct Asker(mpsc::Sender<Question>);

/// Where the questions of [`Asker`]s arrive.
pub type Questions = mpsc::Receiver<Question>;

/// The two ends.
pub fn channel() -> (Asker, Questions) {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    (Asker(sender), receiver)
}

/// The answers that one worker knows.
#[derive(Debug)]
pub struct Resolver {
    asker: Asker,
    egress: Arc<Egress>,
    names: RefCell<AHashMap<Arc<str>, (Known, Instant)>>,
}

impl Resolver {
    /// Knows nothing yet.
    pub fn new(asker: Asker, egress: Arc<Egress>) -> Self {
        Self { asker, egress, names: RefCell::default() }
    }

    /// Where to connect to for `name` and `port`, in the order in which to try. A literal is its own address.
    ///
    /// # Errors
    /// See [`Unresolved`].
    pub async fn addresses(&self, name: &Arc<str>, port: u16) -> Result<Vec<SocketAddr>, Unresolved> {
        let found = match name.parse() {
            Ok(ip) => allowed(&self.egress, vec![ip]),
            Err(_) => self.known(name).await,
        }?;
        let others = found.iter().filter(|(_, is_ours)| !self.egress.is_own(*is_ours, port));
        let addresses: Vec<SocketAddr> = others.map(|(ip, _)| SocketAddr::new(*ip, port)).collect();
        if addresses.is_empty() { Err(Unresolved::Loop) } else { Ok(addresses) }
    }

    async fn known(&self, name: &Arc<str>) -> Known {
        if let Some((known, until)) = self.names.borrow().get(name)
            && Instant::now() < *until
        {
            return known.clone();
        }
        let (reply, answer) = oneshot::channel();
        let question = Question { name: Arc::clone(name), reply };
        // With too many waiting, one more isn't answered in time anyway.
        if self.asker.0.try_send(question).is_err() {
            return Err(Unresolved::NoAddress);
        }
        let Ok((known, until)) = answer.await else { return Err(Unresolved::NoAddress) };
        let mut names = self.names.borrow_mut();
        if names.len() >= MAX_NAMES {
            let now = Instant::now();
            names.retain(|_, (_, until)| now < *until);
            if names.len() >= MAX_NAMES {
                names.clear();
            }
        }
        names.insert(Arc::clone(name), (known.clone(), until));
        known
    }
}

/// The addresses that may be connected to.
fn allowed(egress: &Egress, addresses: Vec<IpAddr>) -> Known {
    let had_some = !addresses.is_empty();
    let allowed = addresses.into_iter().filter(|&ip| egress.addresses.allows(ip)).take(MAX_ADDRESSES);
    let found: Vec<Found> = allowed.map(|ip| (ip, is_ours(ip))).collect();
    match (found.is_empty(), had_some) {
        (false, _) => Ok(found.into()),
        (true, true) => Err(Unresolved::Forbidden),
        (true, false) => Err(Unresolved::NoAddress),
    }
}

/// Answers questions until nobody can ask any more.
pub async fn answer(mut questions: Questions, lookup: Arc<impl Lookup>, families: Families, egress: Arc<Egress>) {
    let mut asking: AHashMap<Arc<str>, Vec<oneshot::Sender<(Known, Instant)>>> = AHashMap::new();
    // Good answers, to be given again while a name server fails.
    let mut stale: AHashMap<Arc<str>, Arc<[Found]>> = AHashMap::new();
    let mut queries: JoinSet<(Arc<str>, Answer)> = JoinSet::new();
    loop {
        tokio::select! {
            question = questions.recv(), if queries.len() < MAX_QUERIES => {
                let Some(Question { name, reply }) = question else { return };
                let waiting = asking.entry(Arc::clone(&name)).or_default();
                waiting.push(reply);
                if waiting.len() == 1 {
                    let lookup = Arc::clone(&lookup);
                    queries.spawn(async move {
                        let answer = timeout(QUERY_TIMEOUT, lookup.lookup(&name, families)).await;
                        (name, answer.unwrap_or(Answer::Failed))
                    });
                }
            }
            Some(result) = queries.join_next(), if !queries.is_empty() => {
                // A query that panicked leaves its askers without an answer, which is one.
                let Ok((name, answer)) = result else { continue };
                let (known, ttl) = judge(&egress, &name, answer, &mut stale);
                let until = Instant::now() + ttl;
                for reply in asking.remove(&name).unwrap_or_default() {
                    // Whoever has gone needs no answer.
                    let _ = reply.send((known.clone(), until));
                }
            }
        }
    }
}

fn judge(
    egress: &Egress,
    name: &Arc<str>,
    answer: Answer,
    stale: &mut AHashMap<Arc<str>, Arc<[Found]>>,
) -> (Known, Duration) {
    debug!(name = &**name, ?answer, "resolved on demand");
    let (known, ttl) = match answer {
        Answer::Addresses(addresses, ttl) => (allowed(egress, addresses), ttl.clamp(MIN_TTL, MAX_TTL)),
        Answer::Absent => (Err(Unresolved::NoAddress), NEGATIVE_TTL),
        Answer::Failed => match stale.get(name) {
            Some(found) => return (Ok(Arc::clone(found)), NEGATIVE_TTL),
            None => (Err(Unresolved::NoAddress), NEGATIVE_TTL),
        },
    };
    match &known {
        Ok(found) => {
            if stale.len() >= MAX_NAMES {
                stale.clear();
            }
            stale.insert(Arc::clone(name), Arc::clone(found));
        }
        Err(_) => _ = stale.remove(name),
    }
    let ttl = if known.is_err() { NEGATIVE_TTL } else { ttl };
    (known, ttl)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use crate::egress::addresses::AddressPolicy;

    /// Answers from a list.
    struct Script(Mutex<VecDeque<Answer>>);

    impl Lookup for Script {
        async fn lookup(&self, _: &str, _: Families) -> Answer {
            self.0.lock().unwrap().pop_front().unwrap_or(Answer::Failed)
        }
    }

    fn resolver(answers: impl IntoIterator<Item = Answer>, allowed: &[&str]) -> Resolver {
        let allowed = allowed.iter().map(|range| range.parse().unwrap()).collect();
        let egress = Egress::new(AddressPolicy::new(allowed), &Default::default());
        egress.set_listener_ports(vec![8080]);
        let egress = Arc::new(egress);
        let (asker, questions) = channel();
        let lookup = Arc::new(Script(Mutex::new(answers.into_iter().collect())));
        tokio::spawn(answer(questions, lookup, Families::V4, Arc::clone(&egress)));
        Resolver::new(asker, egress)
    }

    fn addresses(list: &[[u8; 4]], seconds: u64) -> Answer {
        Answer::Addresses(list.iter().map(|&ip| IpAddr::from(ip)).collect(), Duration::from_secs(seconds))
    }

    async fn ask(resolver: &Resolver, port: u16) -> Result<Vec<String>, Unresolved> {
        let found = resolver.addresses(&"a.example.com".into(), port).await?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn answers_hold_for_their_time() {
        let resolver = resolver(
            [addresses(&[[1, 1, 1, 1], [1, 0, 0, 1]], 60), addresses(&[[8, 8, 8, 8]], 86_400), Answer::Absent],
            &[],
        );
        assert_eq!(ask(&resolver, 443).await.unwrap(), ["1.1.1.1:443", "1.0.0.1:443"]);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(ask(&resolver, 80).await.unwrap().len(), 2);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(ask(&resolver, 443).await.unwrap(), ["8.8.8.8:443"]);
        tokio::time::advance(MAX_TTL + Duration::from_secs(1)).await;
        assert_eq!(ask(&resolver, 443).await, Err(Unresolved::NoAddress));
    }

    #[tokio::test(start_paused = true)]
    async fn old_answers_serve_while_the_name_server_fails() {
        let resolver = resolver([addresses(&[[1, 1, 1, 1]], 1), Answer::Failed, Answer::Absent, Answer::Failed], &[]);
        let next = async || {
            let answer = ask(&resolver, 443).await;
            tokio::time::advance(Duration::from_secs(6)).await;
            answer
        };
        assert_eq!(next().await.unwrap(), ["1.1.1.1:443"]);
        assert_eq!(next().await.unwrap(), ["1.1.1.1:443"]);
        assert_eq!(next().await, Err(Unresolved::NoAddress), "it says that there is none");
        assert_eq!(next().await, Err(Unresolved::NoAddress));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_led_where_they_must_not_go() {
        let rebound = resolver([addresses(&[[127, 0, 0, 1]], 60)], &[]);
        assert_eq!(ask(&rebound, 443).await, Err(Unresolved::Forbidden));
        let mixed = resolver([addresses(&[[10, 0, 0, 1], [1, 1, 1, 1]], 60)], &[]);
        assert_eq!(ask(&mixed, 443).await.unwrap(), ["1.1.1.1:443"]);
        let looped = resolver([addresses(&[[127, 0, 0, 1]], 60)], &["127.0.0.0/8"]);
        assert_eq!(ask(&looped, 8080).await, Err(Unresolved::Loop));
        assert_eq!(ask(&looped, 443).await.unwrap(), ["127.0.0.1:443"]);
        let literal = resolver([], &[]);
        assert_eq!(literal.addresses(&"169.254.169.254".into(), 80).await, Err(Unresolved::Forbidden));
        assert!(literal.addresses(&"1.1.1.1".into(), 80).await.is_ok());
    }
}
