//! Connections to the server, on threads of the sink's own, for callers that block.

use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use pelton_core::{Error, Result};
use pelton_env::real::Host;
use pelton_env::{Env, Place, Task};
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{Client, Connection, NoTls, Socket};

use crate::failure::{Failure, too_long};
use crate::settings::Settings;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One connection.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) client: Arc<Client>,
    /// Reads and writes its socket.
    _connection: Arc<Task>,
}

impl Session {
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// Where connections come from.
pub(crate) struct Link {
    settings: Settings,
    /// Threads, from the first use on: a plan that is only explained starts none.
    host: OnceLock<Host>,
}

impl Link {
    pub(crate) fn new(settings: Settings) -> Link {
        Link { settings, host: OnceLock::new() }
    }

    pub(crate) fn env(&self) -> Result<Env> {
        if let Some(host) = self.host.get() {
            return Ok(host.env().clone());
        }
        let host = Host::new(1, 1)
            .map_err(|e| Error::storage(format!("starting threads for connections to PostgreSQL: {e}")))?;
        Ok(self.host.get_or_init(|| host).env().clone())
    }

    /// Blocks until `work` is done. A connection of its own if `session` is none or broken. Gives the session back if it can be used again.
    pub(crate) fn work<T, F>(
        &self,
        session: Option<Session>,
        work: impl FnOnce(Session) -> F + Send + 'static,
    ) -> Result<(T, Session)>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let (env, settings) = (self.env()?, self.settings.clone());
        self.wait(async move {
            once(&env, &settings, session, work).await.map_err(|f| f.error.context(settings.describe()))
        })
    }

    /// The same for work that can be repeated: tried again until it is done, fails for good, or `patience` is over.
    pub(crate) fn persist<T, F>(
        &self,
        mut session: Option<Session>,
        patience: Duration,
        work: impl Fn(Session) -> F + Send + Sync + 'static,
    ) -> Result<(T, Session)>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let (env, settings) = (self.env()?, self.settings.clone());
        self.wait(async move {
            let until = env.now() + patience;
            let mut pause = FIRST_PAUSE;
            loop {
                let failure = match once(&env, &settings, session.take(), &work).await {
                    Ok(done) => return Ok(done),
                    Err(failure) => failure,
                };
                if !failure.passing || env.now() + pause > until {
                    return Err(failure.error.context(settings.describe()));
                }
                tracing::warn!(sink = settings.name, error = %failure.error, "PostgreSQL: trying again");
                env.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        })
    }

    fn wait<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let (tell, told) = mpsc::sync_channel(1);
        let _task = self.env()?.spawn(Place::Network, async move {
            // Somebody listens: the caller waits.
            let _ = tell.send(work.await);
        });
        told.recv().unwrap_or_else(|_| Err(Error::internal("work with PostgreSQL ended without a result")))
    }
}

async fn once<T, F>(
    env: &Env,
    settings: &Settings,
    session: Option<Session>,
    work: impl FnOnce(Session) -> F,
) -> Result<(T, Session), Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let limited = env.within(settings.timeout, async {
        let session = match session.filter(|s| !s.is_closed()) {
            Some(session) => session,
            None => connect(env, settings).await?,
        };
        Ok((work(session.clone()).await?, session))
    });
    // What failed or took too long is in the middle of something: its connection is not used again.
    limited.await.unwrap_or_else(|| Err(too_long(settings.timeout)))
}

async fn connect(env: &Env, settings: &Settings) -> Result<Session, Failure> {
    let config = settings.connection.config();
    let (client, task) = match settings.connection.tls() {
        Some(tls) => served(env, config.connect(tls.clone()).await?),
        None => served(env, config.connect(NoTls).await?),
    };
    let session = Session { client: Arc::new(client), _connection: Arc::new(task) };
    // A transaction stays open from a part's first row to its checkpoint, and what it says was committed has to be on disk.
    let settle = "set idle_in_transaction_session_timeout = 0; set statement_timeout = 0; \
                  set client_min_messages = warning; \
                  select set_config('synchronous_commit', 'on', false) \
                  where current_setting('synchronous_commit') = 'off'";
    session.client.batch_execute(settle).await?;
    Ok(session)
}

/// Lets a connection read and write its socket.
fn served<T>(env: &Env, (client, connection): (Client, Connection<Socket, T>)) -> (Client, Task)
where
    T: TlsStream + Unpin + Send + 'static,
{
    let task = env.spawn(Place::Network, async move {
        if let Err(e) = connection.await {
            tracing::debug!("a connection to PostgreSQL ended: {e}");
        }
    });
    (client, task)
}
