//! Two ends of a raw connection, set up as the transport sets up its own.

use std::net::{TcpListener, TcpStream};

pub(crate) fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for socket in [&near, &far] {
        socket.set_nodelay(true).unwrap();
        let _ = rustix::net::sockopt::set_tcp_congestion(socket, "cubic");
    }
    (near, far)
}
