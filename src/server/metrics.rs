//! Numbers for Prometheus.
//!
//! [`install`] once, then the functions of this module from any thread; without it they do
//! nothing. [`serve`] answers scrapes on the control plane's own runtime: one page, whatever was
//! asked, to few clients at once.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Longest request in bytes.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// How long a client may take for everything.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
const CLIENTS_MAX: usize = 16;
/// How long to wait when the system has no descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const VIEW: &str = "ringkeep_view_number";
const MEMBERS: &str = "ringkeep_members";
const OWNED: &str = "ringkeep_checkpoints_owned";
const HELD: &str = "ringkeep_mirrors_held";
const PROTECTED: &str = "ringkeep_protected";
const MEMORY_USED: &str = "ringkeep_memory_used_bytes";
const MEMORY_LIMIT: &str = "ringkeep_memory_limit_bytes";
const COMMITS: &str = "ringkeep_commits_mirrored_total";
const VIEW_CHANGES: &str = "ringkeep_view_changes_total";
const EVICTIONS: &str = "ringkeep_evictions_total";
const SUSPICIONS: &str = "ringkeep_suspicions_total";
const WITHDRAWN: &str = "ringkeep_suspicions_withdrawn_total";
const LATENESS: &str = "ringkeep_membership_lateness_seconds";

/// Ordinary, noticeable, several heartbeats, as long as others wait.
const LATENESS_BUCKETS: [f64; 8] = [0.001, 0.002, 0.005, 0.02, 0.05, 0.1, 0.3, 1.0];
/// What was observed is put into its buckets so often, whether or not anybody asks for it.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Makes this process keep the numbers, from now on.
///
/// # Errors
/// Something else keeps numbers in this process already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = builder()?.install_recorder()?;
    describe();
    Ok(handle)
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let lateness = Matcher::Full(LATENESS.to_owned());
    PrometheusBuilder::new().set_buckets_for_metric(lateness, &LATENESS_BUCKETS)
}

fn describe() {
    describe_gauge!(VIEW, "Number of the installed view, 0 without one");
    describe_gauge!(MEMBERS, "Members of the ring");
    describe_gauge!(OWNED, "Checkpoints that this node owns");
    describe_gauge!(HELD, "Mirrors that this node holds");
    describe_gauge!(PROTECTED, "1 when all that this node owns or holds has two live copies");
    describe_gauge!(MEMORY_USED, "Shared memory in use by regions and mirrors, in bytes");
    describe_gauge!(MEMORY_LIMIT, "Shared memory that regions and mirrors may use, in bytes");
    describe_counter!(COMMITS, "Commits that reached their mirror");
    describe_counter!(VIEW_CHANGES, "Views that this node installed");
    describe_counter!(EVICTIONS, "Times that this node was taken out of the ring");
    describe_counter!(SUSPICIONS, "Times that this node did not hear a neighbour for too long");
    describe_counter!(WITHDRAWN, "Times that such a neighbour was heard again");
    let lateness = "How much later than wanted the membership's timer ran";
    describe_histogram!(LATENESS, Unit::Seconds, lateness);
    // So that a scrape before the first event shows 0 and not nothing.
    for name in [COMMITS, VIEW_CHANGES, EVICTIONS, SUSPICIONS, WITHDRAWN] {
        counter!(name).increment(0);
    }
}

/// This view was installed: its number and its members in the ring.
pub fn view_installed(number: u64, members: usize) {
    gauge!(VIEW).set(number as f64);
    gauge!(MEMBERS).set(members as f64);
    counter!(VIEW_CHANGES).increment(1);
}

/// This node was taken out of the ring.
pub fn evicted() {
    counter!(EVICTIONS).increment(1);
}

/// A neighbour was silent for too long.
pub fn suspected() {
    counter!(SUSPICIONS).increment(1);
}

/// A neighbour that was suspected was heard again.
pub fn suspicion_withdrawn() {
    counter!(WITHDRAWN).increment(1);
}

/// The membership's timer ran so much later than wanted.
pub fn ran_late(late: Duration) {
    histogram!(LATENESS).record(late);
}

/// How many checkpoints this node owns, and how many mirrors it holds.
pub fn set_copies(owned: usize, held: usize) {
    gauge!(OWNED).set(owned as f64);
    gauge!(HELD).set(held as f64);
}

/// Whether all that this node owns or holds has two live copies.
pub fn set_protected(protected: bool) {
    gauge!(PROTECTED).set(f64::from(u8::from(protected)));
}

/// Shared memory in use and its limit, in bytes.
pub fn set_memory(used: u64, limit: u64) {
    gauge!(MEMORY_USED).set(used as f64);
    gauge!(MEMORY_LIMIT).set(limit as f64);
}

/// How many commits have reached their mirrors since the start. Never goes back.
pub fn set_commits_mirrored(total: u64) {
    counter!(COMMITS).absolute(total);
}

/// Answers scrapes until the returned task is aborted. Must be called inside a
/// [`tokio::task::LocalSet`].
pub fn serve(listener: TcpListener, handle: PrometheusHandle) -> JoinHandle<()> {
    tokio::task::spawn_local(async move {
        let slots = Arc::new(Semaphore::new(CLIENTS_MAX));
        let _upkeep = keep_up(handle.clone());
        loop {
            // More clients than slots wait in the listener's backlog.
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((client, from)) => {
                    let handle = handle.clone();
                    tokio::task::spawn_local(async move {
                        scraped(client, from, &handle).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!("accepting a metrics client: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Until it is dropped.
fn keep_up(handle: PrometheusHandle) -> AbortOnDrop {
    AbortOnDrop(tokio::task::spawn_local(async move {
        loop {
            sleep(UPKEEP_INTERVAL).await;
            handle.run_upkeep();
        }
    }))
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn scraped(mut client: TcpStream, from: SocketAddr, handle: &PrometheusHandle) {
    let answered = timeout(CLIENT_TIMEOUT, async {
        if !read_request(&mut client).await? {
            let refusal = "HTTP/1.0 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
            return client.write_all(refusal.as_bytes()).await;
        }
        handle.run_upkeep();
        let page = handle.render();
        let head = format!(
            "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
             Content-Length: {}\r\n\r\n",
            page.len()
        );
        client.write_all(head.as_bytes()).await?;
        client.write_all(page.as_bytes()).await?;
        client.shutdown().await
    });
    if !matches!(answered.await, Ok(Ok(()))) {
        tracing::debug!("a metrics client at {from} went away or took too long");
    }
}

/// Reads to the end of the headers. False when that is not a GET in bounds.
async fn read_request(client: &mut (impl AsyncRead + Unpin)) -> std::io::Result<bool> {
    let mut request = Vec::with_capacity(1024);
    let mut bounded = client.take(REQUEST_BYTES_MAX as u64);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if bounded.read_buf(&mut request).await? == 0 {
            return Ok(false);
        }
    }
    Ok(request.starts_with(b"GET "))
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        // The server may reset what it did not read to the end.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_scrape_shows_the_numbers_and_nonsense_does_not_stop_it() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            view_installed(3, 5);
            set_copies(2, 1);
            set_protected(true);
            set_memory(10, 100);
            set_commits_mirrored(42);
            suspected();
            ran_late(Duration::from_millis(3));
        });
        let work = async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = serve(listener, handle);
            // Silent clients take places, not all of them.
            let mut silent = Vec::new();
            for _ in 1..CLIENTS_MAX {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let long = [b'x'; REQUEST_BYTES_MAX + 1];
            assert!(!ask(address, &long).await.contains("200"));
            assert!(ask(address, b"PUT / HTTP/1.1\r\n\r\n").await.contains(" 400 "));
            let page = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            for line in [
                "HTTP/1.0 200 OK",
                "ringkeep_view_number 3",
                "ringkeep_members 5",
                "ringkeep_checkpoints_owned 2",
                "ringkeep_mirrors_held 1",
                "ringkeep_protected 1",
                "ringkeep_memory_used_bytes 10",
                "ringkeep_memory_limit_bytes 100",
                "ringkeep_commits_mirrored_total 42",
                "ringkeep_view_changes_total 1",
                "ringkeep_evictions_total 0",
                "ringkeep_suspicions_total 1",
                "ringkeep_suspicions_withdrawn_total 0",
                "ringkeep_membership_lateness_seconds_bucket{le=\"0.002\"} 0",
                "ringkeep_membership_lateness_seconds_bucket{le=\"0.005\"} 1",
                "# HELP ringkeep_protected",
            ] {
                assert!(page.contains(line), "{line} in {page}");
            }
            server.abort();
        };
        timeout(Duration::from_secs(20), LocalSet::new().run_until(work)).await.unwrap();
    }
}
