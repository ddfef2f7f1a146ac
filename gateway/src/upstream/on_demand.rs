//! Hosts that are resolved when a request names them: ServiceEntries with resolution DYNAMIC_DNS, and unknown hosts of
//! forward proxies.
//!
//! Each worker keeps answers for as long as they hold. What it doesn't know, one task asks for, once for all workers, and
//! leaves out the addresses that nobody may connect to.
//!
//! Clients choose the names, and some of those are never answered. So a query that takes long gives its place to others,
//! and nobody is asked for what nobody waits for any more.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::dns::{Answer, Families, Lookup};
use crate::egress::addresses::AddressPolicy;
use crate::egress::{Egress, Ours, ours};

/// Questions of all workers that the task hasn't taken yet. It takes them at once, whatever else is under way.
const MAX_UNREAD: usize = 1_024;
/// Askers that wait for one name.
const MAX_WAITING: usize = 1_000;
/// Names that wait for their query.
const MAX_BACKLOG: usize = 1_024;
/// Queries under way at once: young ones, and those that have lost [`PATIENCE`].
const MAX_QUERIES: usize = 100;
const MAX_SLOW_QUERIES: usize = 300;
/// What most answers take less than. After that a query no longer holds up those that wait.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time for one name: `timeout` of `resolv.conf(5)` by default, and the [`PATIENCE`] before it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(6);
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 16;
/// Names that a worker keeps.
const MAX_NAMES: usize = 10_000;
/// Answers hold at least and at most for this long. A name that has moved is found before long, whatever its owner says.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(300);
/// How long it is believed that a name has no address, or none that may be used.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);
/// How old an answer may be that is given while the name server fails. Source: RFC 8767 §5, 1 to 3 days.
const MAX_STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why there is no address to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved {
    /// The name doesn't exist, has no address, or nobody knows in time.
    NoAddress,
    /// All its addresses are such that nobody may connect to them.
    Forbidden,
    /// It leads back to this gateway or its machine.
    Loop,
}

/// An address, and whether it may be one of this machine.
type Found = (IpAddr, bool);

/// What is known of a name: its addresses, or why there are none.
type Known = Result<Arc<[Found]>, Unresolved>;

/// Where an asker waits for what is known, and until when that holds.
type Reply = oneshot::Sender<(Known, Instant)>;

/// A question of a worker.
#[derive(Debug)]
pub struct Question {
    name: Arc<str>,
    reply: Reply,
}

/// Asks the one task that resolves names on demand.
#[derive(Debug, Clone)]
pub struct Asker(mpsc::Sender<Question>);

/// Where the questions of [`Asker`]s arrive.
pub type Questions = mpsc::Receiver<Question>;

/// The two ends.
pub fn channel() -> (Asker, Questions) {
    let (sender, receiver) = mpsc::channel(MAX_UNREAD);
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
            Ok(ip) => allowed(&self.egress.addresses, &[ip], ours).0,
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

/// The addresses that may be connected to, and whether that is certain. This machine's own, as `ours` knows them, are none
/// of them: from here they lead to what is not meant for others. But the operator may name them.
fn allowed(policy: &AddressPolicy, addresses: &[IpAddr], ours: impl Fn(IpAddr) -> Ours) -> (Known, bool) {
    let mut why = if addresses.is_empty() { Unresolved::NoAddress } else { Unresolved::Forbidden };
    let mut is_certain = true;
    let mut found: Vec<Found> = Vec::new();
    for &ip in addresses.iter().filter(|&&ip| policy.allows(ip)).take(MAX_ADDRESSES) {
        let ours = ours(ip);
        is_certain &= ours != Ours::Unknown;
        if ours == Ours::No || policy.names(ip) {
            found.push((ip, ours != Ours::No));
        } else {
            why = Unresolved::Loop;
        }
    }
    (if found.is_empty() { Err(why) } else { Ok(found.into()) }, is_certain)
}

/// Answers questions until nobody can ask any more.
pub async fn answer(mut questions: Questions, lookup: Arc<impl Lookup>, families: Families, egress: Arc<Egress>) {
    let mut desk = Desk { egress, asked: AHashMap::new(), backlog: VecDeque::new(), stale: AHashMap::new() };
    let places = Arc::new(Semaphore::new(MAX_QUERIES));
    let slow_places = Arc::new(Semaphore::new(MAX_SLOW_QUERIES));
    let mut queries: JoinSet<(Arc<str>, Answer)> = JoinSet::new();
    loop {
        tokio::select! {
            question = questions.recv() => {
                let Some(question) = question else { return };
                desk.take(question, places.available_permits() > 0);
            }
            Ok(place) = Arc::clone(&places).acquire_owned(), if !desk.backlog.is_empty() => {
                let Some(name) = desk.next() else { continue };
                let (lookup, slow_places) = (Arc::clone(&lookup), Arc::clone(&slow_places));
                queries.spawn(async move {
                    // A query that panics fails like any other: its askers hear of it, and the next one asks again.
                    let query = AssertUnwindSafe(query(&*lookup, &name, families, place, &slow_places));
                    let answer = query.catch_unwind().await.unwrap_or(Answer::Failed);
                    (name, answer)
                });
            }
            Some(result) = queries.join_next(), if !queries.is_empty() => {
                if let Ok((name, answer)) = result {
                    desk.answered(&name, answer);
                }
            }
        }
    }
}

/// Asks for `name`; for one with a dot as it stands. With a search domain it would be another name, whose owner would
/// then speak for the host. Gives `place` to others after a while, and gives up if there are too many that take as long.
async fn query(
    lookup: &impl Lookup,
    name: &str,
    families: Families,
    place: OwnedSemaphorePermit,
    slow_places: &Semaphore,
) -> Answer {
    let absolute = name.contains('.').then(|| format!("{name}."));
    let mut answer = pin!(lookup.lookup(absolute.as_deref().unwrap_or(name), families));
    if let Ok(answer) = timeout(PATIENCE, &mut answer).await {
        return answer;
    }
    drop(place);
    let Ok(_place) = slow_places.try_acquire() else { return Answer::Failed };
    timeout(QUERY_TIMEOUT.saturating_sub(PATIENCE), answer).await.unwrap_or(Answer::Failed)
}

/// What is asked for, and what was answered of late.
struct Desk {
    egress: Arc<Egress>,
    /// Names that are in the backlog or asked for.
    asked: AHashMap<Arc<str>, Asked>,
    /// Names whose query has not begun; each once.
    backlog: VecDeque<Arc<str>>,
    /// Addresses of good answers, and until when they may be given again while a name server fails.
    stale: AHashMap<Arc<str>, (Vec<IpAddr>, Instant)>,
}

#[derive(Default)]
struct Asked {
    waiting: Vec<Reply>,
    /// Asked for even if nobody waits: somebody was given an old answer.
    is_refresh: bool,
}

impl Desk {
    /// Takes a question in. `is_free`: its query can begin at once. If it can't, an old answer is better than a wait.
    fn take(&mut self, question: Question, is_free: bool) {
        let Question { name, reply } = question;
        if reply.is_closed() {
            return;
        }
        let stale = if is_free { None } else { self.stale(&name) };
        if !self.asked.contains_key(&name) {
            if self.backlog.len() >= MAX_BACKLOG {
                self.forget_gone();
            }
            if self.backlog.len() >= MAX_BACKLOG {
                // Without one its asker hears at once that nobody knows.
                if let Some(known) = stale {
                    let _ = reply.send((known, Instant::now() + NEGATIVE_TTL));
                }
                return;
            }
            self.backlog.push_back(Arc::clone(&name));
        }
        let asked = self.asked.entry(name).or_default();
        if let Some(known) = stale {
            asked.is_refresh = true;
            let _ = reply.send((known, Instant::now() + NEGATIVE_TTL));
            return;
        }
        if asked.waiting.len() >= MAX_WAITING {
            asked.waiting.retain(|reply| !reply.is_closed());
        }
        if asked.waiting.len() < MAX_WAITING {
            asked.waiting.push(reply);
        }
    }

    /// Leaves out of the backlog what nobody waits for any more.
    fn forget_gone(&mut self) {
        self.backlog.retain(|name| {
            let is_wanted = self.asked.get_mut(name).is_some_and(Asked::is_wanted);
            if !is_wanted {
                self.asked.remove(name);
            }
            is_wanted
        });
    }

    /// The next name to ask for.
    fn next(&mut self) -> Option<Arc<str>> {
        while let Some(name) = self.backlog.pop_front() {
            if self.asked.get_mut(&name).is_some_and(Asked::is_wanted) {
                return Some(name);
            }
            self.asked.remove(&name);
        }
        None
    }

    /// Tells everybody who waits for `name`.
    fn answered(&mut self, name: &Arc<str>, answer: Answer) {
        let (known, ttl) = self.judge(name, answer);
        let until = Instant::now() + ttl;
        for reply in self.asked.remove(name).unwrap_or_default().waiting {
            // Whoever has gone needs no answer.
            let _ = reply.send((known.clone(), until));
        }
    }

    fn judge(&mut self, name: &Arc<str>, answer: Answer) -> (Known, Duration) {
        debug!(name = &**name, ?answer, "resolved on demand");
        match answer {
            Answer::Addresses(addresses, ttl) => {
                let (known, is_certain) = allowed(&self.egress.addresses, &addresses, ours);
                match &known {
                    Ok(_) => self.keep(name, addresses),
                    Err(_) if is_certain => _ = self.stale.remove(name),
                    Err(_) => {}
                }
                let is_good = known.is_ok() && is_certain;
                (known, if is_good { ttl.clamp(MIN_TTL, MAX_TTL) } else { NEGATIVE_TTL })
            }
            Answer::Absent => {
                self.stale.remove(name);
                (Err(Unresolved::NoAddress), NEGATIVE_TTL)
            }
            Answer::Failed => (self.stale(name).unwrap_or(Err(Unresolved::NoAddress)), NEGATIVE_TTL),
        }
    }

    fn keep(&mut self, name: &Arc<str>, mut addresses: Vec<IpAddr>) {
        addresses.retain(|&ip| self.egress.addresses.allows(ip));
        addresses.truncate(MAX_ADDRESSES);
        addresses.shrink_to_fit();
        let now = Instant::now();
        if self.stale.len() >= MAX_NAMES {
            self.stale.retain(|_, (_, until)| now < *until);
            if self.stale.len() >= MAX_NAMES {
                self.stale.clear();
            }
        }
        self.stale.insert(Arc::clone(name), (addresses, now + MAX_STALE));
    }

    /// What follows from the last good answer, unless it is too old.
    fn stale(&mut self, name: &Arc<str>) -> Option<Known> {
        let (addresses, until) = self.stale.get(name)?;
        if Instant::now() < *until {
            return Some(allowed(&self.egress.addresses, addresses, ours).0);
        }
        self.stale.remove(name);
        None
    }
}

impl Asked {
    fn is_wanted(&mut self) -> bool {
        self.waiting.retain(|reply| !reply.is_closed());
        self.is_refresh || !self.waiting.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers from a list.
    struct Script(Mutex<VecDeque<Answer>>);

    impl Lookup for Script {
        async fn lookup(&self, _: &str, _: Families) -> Answer {
            self.0.lock().unwrap().pop_front().unwrap_or(Answer::Failed)
        }
    }

    /// Never answers for names below `dead`, panics once for `panics`, and has an address of all others until it fails.
    #[derive(Default)]
    struct Zone {
        asked: Mutex<Vec<String>>,
        fails: std::sync::atomic::AtomicBool,
    }

    impl Zone {
        fn count(&self, name: &str) -> usize {
            self.asked.lock().unwrap().iter().filter(|asked| asked.trim_end_matches('.') == name).count()
        }

        fn fail(&self) {
            self.fails.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    impl Lookup for Zone {
        async fn lookup(&self, name: &str, _: Families) -> Answer {
            self.asked.lock().unwrap().push(name.to_owned());
            let name = name.trim_end_matches('.');
            assert!(name != "panics.test" || self.count(name) > 1, "the first time");
            if name.ends_with(".dead") {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            if self.fails.load(std::sync::atomic::Ordering::Relaxed) {
                return Answer::Failed;
            }
            addresses(&[[1, 1, 1, 1]], 1)
        }
    }

    fn zone() -> (Arc<Zone>, Resolver) {
        let (zone, egress) = (Arc::new(Zone::default()), Arc::new(Egress::default()));
        let (asker, questions) = channel();
        tokio::spawn(answer(questions, Arc::clone(&zone), Families::V4, Arc::clone(&egress)));
        (zone, Resolver::new(asker, egress))
    }

    /// Begins to ask for `name`.
    fn question(resolver: &Resolver, name: &str) -> oneshot::Receiver<(Known, Instant)> {
        let (reply, answer) = oneshot::channel();
        resolver.asker.0.try_send(Question { name: name.into(), reply }).unwrap();
        answer
    }

    async fn find(resolver: &Resolver, name: &str) -> (Result<usize, Unresolved>, Duration) {
        let begin = Instant::now();
        let found = resolver.addresses(&name.into(), 443).await.map(|found| found.len());
        (found, begin.elapsed())
    }

    /// Lets the task run.
    async fn pass(time: Duration) {
        tokio::time::sleep(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_nobody_answers_hold_up_others_briefly() {
        let (zone, resolver) = zone();
        assert_eq!(find(&resolver, "known.test").await.0, Ok(1));
        let dead: Vec<_> = (0..MAX_QUERIES).map(|number| question(&resolver, &format!("n{number}.dead"))).collect();
        pass(Duration::from_millis(100)).await;
        let shared = question(&resolver, "n0.dead");
        let (found, time) = find(&resolver, "other.test").await;
        assert_eq!(found, Ok(1));
        assert!(time <= PATIENCE, "{time:?}");
        for answer in dead.into_iter().chain([shared]) {
            assert_eq!(answer.await.unwrap().0, Err(Unresolved::NoAddress));
        }
        assert_eq!(zone.count("n0.dead"), 1, "shared by all who ask");
    }

    #[tokio::test(start_paused = true)]
    async fn old_answers_serve_while_no_query_can_begin() {
        let (zone, resolver) = zone();
        assert_eq!(find(&resolver, "known.test").await.0, Ok(1));
        pass(Duration::from_secs(2)).await;
        let _dead: Vec<_> = (0..MAX_QUERIES).map(|number| question(&resolver, &format!("n{number}.dead"))).collect();
        pass(Duration::from_millis(100)).await;
        let (found, time) = find(&resolver, "known.test").await;
        assert_eq!((found, time), (Ok(1), Duration::ZERO));
        pass(PATIENCE).await;
        assert_eq!(zone.count("known.test"), 2, "asked for again when there is room");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_not_asked() {
        let (zone, resolver) = zone();
        let _dead: Vec<_> = (0..MAX_QUERIES).map(|number| question(&resolver, &format!("n{number}.dead"))).collect();
        drop(question(&resolver, "before.test"));
        pass(Duration::from_millis(100)).await;
        let gone = question(&resolver, "after.test");
        pass(Duration::from_millis(100)).await;
        drop(gone);
        pass(QUERY_TIMEOUT).await;
        assert_eq!((zone.count("before.test"), zone.count("after.test")), (0, 0));
        assert_eq!(find(&resolver, "after.test").await.0, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn everything_that_waits_has_an_end() {
        let (zone, resolver) = zone();
        let mut dead = Vec::new();
        for number in 0..MAX_QUERIES + MAX_BACKLOG + 500 {
            dead.push(question(&resolver, &format!("n{number}.dead")));
            tokio::task::yield_now().await;
        }
        // One more is refused at once, and so is whoever joins too many for one name.
        let (found, time) = find(&resolver, "late.test").await;
        assert_eq!((found, time), (Err(Unresolved::NoAddress), Duration::ZERO));
        let mut same = Vec::new();
        for _ in 0..MAX_WAITING + 5 {
            same.push(question(&resolver, "n0.dead"));
            tokio::task::yield_now().await;
        }
        pass(Duration::from_millis(1)).await;
        let refused = same.iter_mut().filter_map(|answer| answer.try_recv().err());
        let refused = refused.filter(|error| *error == oneshot::error::TryRecvError::Closed).count();
        assert_eq!(refused, 6, "the first one waits, too");
        // All are told within the time of a query and the rounds before it.
        pass(PATIENCE * 12 + QUERY_TIMEOUT).await;
        assert!(dead.iter_mut().all(|answer| answer.try_recv() != Err(oneshot::error::TryRecvError::Empty)));
        assert!(zone.asked.lock().unwrap().len() <= MAX_QUERIES + MAX_BACKLOG);
        assert_eq!(find(&resolver, "late.test").await.0, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_query_that_panics_is_asked_again() {
        let (zone, resolver) = zone();
        assert_eq!(find(&resolver, "panics.test").await.0, Err(Unresolved::NoAddress));
        pass(NEGATIVE_TTL).await;
        assert_eq!(find(&resolver, "panics.test").await.0, Ok(1));
        assert_eq!(zone.count("panics.test"), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn names_with_dots_are_asked_for_as_they_stand() {
        let (zone, resolver) = zone();
        for name in ["a.example.com", "single"] {
            assert_eq!(find(&resolver, name).await.0, Ok(1));
        }
        assert_eq!(*zone.asked.lock().unwrap(), ["a.example.com.", "single"]);
    }

    #[test]
    fn this_machine_is_reached_where_the_operator_says_so() {
        let ips = [[1, 1, 1, 1], [8, 8, 8, 8], [10, 0, 0, 1]].map(IpAddr::from);
        let [own, other, private] = ips;
        let ours = |ip| if ip == own { Ours::Yes } else { Ours::No };
        let by_default = AddressPolicy::default();
        let named = AddressPolicy::new(vec!["1.1.1.0/24".parse().unwrap()]);
        for (policy, addresses, expected) in [
            (&by_default, &[own, other][..], Ok(vec![(other, false)])),
            (&by_default, &[own], Err(Unresolved::Loop)),
            (&by_default, &[private, own], Err(Unresolved::Loop)),
            (&by_default, &[private], Err(Unresolved::Forbidden)),
            (&by_default, &[], Err(Unresolved::NoAddress)),
            (&named, &[own, other], Ok(vec![(own, true), (other, false)])),
        ] {
            let (known, is_certain) = allowed(policy, addresses, ours);
            assert_eq!(known.map(|found| found.to_vec()), expected, "{addresses:?}");
            assert!(is_certain);
        }
        // Nobody knows: as if it were.
        let (known, is_certain) = allowed(&by_default, &[other], |_| Ours::Unknown);
        assert_eq!((known, is_certain), (Err(Unresolved::Loop), false));
        let (known, is_certain) = allowed(&named, &[own], |_| Ours::Unknown);
        assert_eq!((known.unwrap().to_vec(), is_certain), (vec![(own, true)], false));
    }

    #[tokio::test(start_paused = true)]
    async fn old_answers_end_after_a_day() {
        let (zone, resolver) = zone();
        assert_eq!(find(&resolver, "a.test").await.0, Ok(1));
        zone.fail();
        tokio::time::advance(MAX_STALE - Duration::from_secs(10)).await;
        assert_eq!(find(&resolver, "a.test").await.0, Ok(1));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(find(&resolver, "a.test").await.0, Err(Unresolved::NoAddress));
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
