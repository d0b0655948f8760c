//! A TCP transport that nobody uses makes no system call: it can stand beside RDMA for nothing.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use ringkeep::transport::{
    Transport,
    tcp::{DATA_MAGIC, TcpTransport, Timeouts},
};

/// Polls in a child process that the kernel kills at its first system call but the last.
fn polls_without_system_calls(transport: &mut TcpTransport) -> bool {
    let mut events = Vec::new();
    // SAFETY: the child calls nothing but `poll`, which takes no lock and, without anything to
    // tell, allocates nothing; then it ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: no pointers.
        let strict = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) };
        for _ in 0..1000 {
            transport.poll(&mut events);
        }
        // SAFETY: ends the process. `_exit` would make a call that strict mode forbids.
        unsafe { libc::syscall(libc::SYS_exit, if strict == 0 { 0 } else { 77 }) };
    }
    assert!(child > 0, "fork");
    let mut status = 0;
    // SAFETY: `status` is writable.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    if libc::WIFEXITED(status) {
        assert_eq!(libc::WEXITSTATUS(status), 0, "this kernel has no seccomp");
        return true;
    }
    assert_eq!(libc::WTERMSIG(status), libc::SIGKILL);
    false
}

fn handed_over() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.write_all(&DATA_MAGIC).unwrap();
    let mut far = listener.accept().unwrap().0;
    far.read_exact(&mut [0; 4]).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

#[test]
fn only_a_transport_in_use_asks_the_system() {
    let preamble = Duration::from_millis(50);
    let mut transport = TcpTransport::new(Timeouts { preamble, ..Timeouts::default() }).unwrap();
    let mut events = Vec::new();
    assert!(polls_without_system_calls(&mut transport), "new");

    let (conn, _) = transport.offer().unwrap();
    assert!(!polls_without_system_calls(&mut transport), "with a connection");
    transport.close(conn);
    assert!(polls_without_system_calls(&mut transport), "without one again");

    // After a sleep the system is asked once.
    assert!(transport.arm().unwrap());
    assert!(!polls_without_system_calls(&mut transport), "armed");
    transport.poll(&mut events);
    assert!(polls_without_system_calls(&mut transport), "awake");

    // Somebody who hands a socket over is heard, and forgotten when nothing comes of it.
    let (_near, far) = handed_over();
    assert!(transport.adopter().adopt(far));
    assert!(!polls_without_system_calls(&mut transport), "a socket was handed over");
    transport.poll(&mut events);
    assert!(!polls_without_system_calls(&mut transport), "it waits in the lobby");
    let started = Instant::now();
    while !polls_without_system_calls(&mut transport) {
        assert!(started.elapsed() < Duration::from_secs(10), "it is never forgotten");
        transport.poll(&mut events);
    }
    assert!(started.elapsed() >= preamble / 2);
    assert!(events.is_empty());
}
