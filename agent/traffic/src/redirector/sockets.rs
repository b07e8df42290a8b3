//! The listening sockets: given by systemd, or bound by ourselves. With systemd the `.socket` unit
//! owns them, so that they outlive a restart or upgrade of this process: connections made
//! meanwhile wait in the kernel and none is refused. A descriptor store would keep them too, but
//! only from the first start on and not across a stop; the unit keeps them from boot on.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use ferry_proto::Fault;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::dial::make_transparent;
use crate::config::Config;

/// How many connections the kernel keeps while this process is busy or restarts.
const BACKLOG: i32 = 4_096;

/// The listening sockets, by use.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Redirected HTTP.
    pub http: Vec<TcpListener>,
    /// Redirected HTTPS.
    pub https: Vec<TcpListener>,
    /// Other servers' redirectors.
    pub peer: Vec<TcpListener>,
    /// The agent.
    pub control: Vec<UnixListener>,
}

impl Sockets {
    /// The sockets that systemd opened, or else bound as the configuration says.
    ///
    /// # Errors
    /// systemd gave other sockets than expected, or one cannot be bound.
    pub fn get(config: &Config) -> Result<Self, Fault> {
        let sockets = match Self::from_systemd()? {
            Some(sockets) => sockets,
            None => Self::bind(config)?,
        };
        sockets.take_strays();
        Ok(sockets)
    }

    /// Lets the firewall give connections to the service ports to these sockets as they are.
    fn take_strays(&self) {
        for listener in self.http.iter().chain(&self.https) {
            let v4 = listener.local_addr().is_ok_and(|address| address.is_ipv4());
            if let Err(error) = make_transparent(&SockRef::from(listener), v4) {
                tracing::warn!(%error, "a visitor who comes back by a port that was used before \
                    the redirector came may pass it by: give the process CAP_NET_RAW");
            }
        }
    }

    /// The sockets that systemd opened, if it opened any. To be called once.
    ///
    /// # Errors
    /// They are not the four expected kinds.
    pub fn from_systemd() -> Result<Option<Self>, Fault> {
        let remedy = "use the unit ferry-redirector.socket as it was installed";
        let given: Vec<_> = sd_notify::listen_fds_with_names()
            .map_err(|e| Fault::io("systemd's sockets cannot be taken", &e).remedy(remedy))?
            .collect();
        if given.is_empty() {
            return Ok(None);
        }
        let mut sockets = Self::default();
        for (fd, name) in given {
            // SAFETY: systemd passed this descriptor to this process for its use, LISTEN_PID was
            // checked, and this function runs once: nobody else owns it.
            #[allow(unsafe_code)]
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            match name.as_str() {
                "http" => sockets.http.push(fd.into()),
                "https" => sockets.https.push(fd.into()),
                "peer" => sockets.peer.push(fd.into()),
                "control" => sockets.control.push(fd.into()),
                other => {
                    return Err(Fault::precondition(format!(
                        "systemd passed a socket named {other:?}, not http, https, peer or control"
                    ))
                    .remedy(remedy));
                }
            }
        }
        let complete = !sockets.http.is_empty()
            && !sockets.https.is_empty()
            && !sockets.peer.is_empty()
            && !sockets.control.is_empty();
        if !complete {
            return Err(Fault::precondition(
                "systemd did not pass one socket each named http, https, peer and control",
            )
            .remedy(remedy));
        }
        Ok(Some(sockets))
    }

    /// Binds what the configuration names.
    ///
    /// # Errors
    /// An address or the control socket is taken or not allowed.
    pub fn bind(config: &Config) -> Result<Self, Fault> {
        let all = |addresses: &[SocketAddr]| -> Result<Vec<_>, Fault> {
            addresses.iter().map(|address| bind_tcp(*address)).collect()
        };
        Ok(Self {
            http: all(&config.http)?,
            https: all(&config.https)?,
            peer: all(&config.peer)?,
            control: vec![bind_control(&config.control)?],
        })
    }

    /// Makes every socket fit for the runtime.
    ///
    /// # Errors
    /// A descriptor is no socket.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        for listener in self.http.iter().chain(&self.https).chain(&self.peer) {
            listener.set_nonblocking(true)?;
        }
        self.control.iter().try_for_each(|listener| listener.set_nonblocking(true))
    }

    /// The ports of the redirector itself.
    pub fn ports(&self) -> Vec<u16> {
        let listeners = self.http.iter().chain(&self.https).chain(&self.peer);
        listeners.filter_map(|listener| Some(listener.local_addr().ok()?.port())).collect()
    }
}

fn bind_tcp(address: SocketAddr) -> Result<TcpListener, Fault> {
    let bind = |address: SocketAddr| -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // `[::]` stands for both families, as it does with systemd.
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    let bound = match bind(address) {
        // A machine without IPv6.
        Err(e)
            if address.ip().is_unspecified()
                && e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) =>
        {
            bind(SocketAddr::from(([0, 0, 0, 0], address.port())))
        }
        other => other,
    };
    bound.map_err(|e| {
        Fault::io(format!("the redirector cannot listen on {address}"), &e)
            .remedy("see with `ss -ltnp` who uses it, or choose another in redirector.toml")
    })
}

fn bind_control(path: &Path) -> Result<UnixListener, Fault> {
    let bind = || -> io::Result<UnixListener> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|e| {
        Fault::io(format!("the control socket {} cannot be opened", path.display()), &e)
            .remedy("its directory must exist and belong to the redirector's user")
    })
}
