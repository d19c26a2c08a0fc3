//! Where the instances of a job's service are, for as long as somebody wants to know: through deaths of instances, and of the job.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::unfold;
use pelton_core::endpoint::EndpointDelta;
use pelton_core::{Declaration, Error, Result};
use pelton_discovery::ask::{self, Endpoints};
use pelton_discovery::rundir;
use pelton_env::Env;
use pelton_policy::backoff;
use rand::RngExt;
use tokio::sync::{mpsc, watch};

use crate::known::Known;
use crate::target::JobTarget;

/// Waits between looks for a job that is not there.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What is heard of a job.
pub(crate) enum News {
    /// It is there, and this lets one in. What is known of endpoints stands.
    Found { token: String, declaration: Box<Declaration> },
    /// Never a reset.
    Endpoint(EndpointDelta),
}

/// Follows a job until nobody listens. `trouble`: why nothing is heard, while nothing is.
pub(crate) async fn follow(
    env: Env,
    target: JobTarget,
    news: mpsc::UnboundedSender<News>,
    trouble: watch::Sender<Option<Error>>,
) {
    let (mut known, mut token, mut rng) = (Known::default(), None, env.rng());
    let mut failures = 0;
    loop {
        match begin(&env, &target).await {
            Ok((found, endpoints)) => {
                failures = 0;
                trouble.send_replace(None);
                let gone = match token.replace(found.clone()) {
                    Some(before) if before != found => known.forget(),
                    _ => Vec::new(),
                };
                let declaration = Box::new(endpoints.declaration.clone());
                let heard = [News::Found { token: found, declaration }];
                let told = heard.into_iter().chain(gone.into_iter().map(News::Endpoint));
                if told.into_iter().any(|n| news.send(n).is_err()) {
                    return;
                }
                if listen(&env, endpoints, &mut known, &news).await.is_none() {
                    return;
                }
            }
            Err(e) => _ = trouble.send_replace(Some(e)),
        }
        failures += 1;
        let pause = backoff::delay(failures, LOOK.0, LOOK.1, rng.random());
        if pass(&env, pause, &mut known, &news).await.is_none() {
            return;
        }
    }
}

/// The job, by what it is called, and the endpoints of its service.
async fn begin(env: &Env, target: &JobTarget) -> Result<(String, Endpoints)> {
    let found = rundir::find(&target.base, &target.job)?;
    let endpoints = ask::follow(env, &found, &target.service).await?;
    Ok((found.card.token().to_owned(), endpoints))
}

/// Passes on what a job says, until it says no more. None: nobody listens.
async fn listen(
    env: &Env,
    endpoints: Endpoints,
    known: &mut Known,
    news: &mpsc::UnboundedSender<News>,
) -> Option<()> {
    let said = unfold(endpoints, |mut endpoints| async { Some((endpoints.next().await?, endpoints)) });
    let mut said = std::pin::pin!(said);
    loop {
        let deltas = tokio::select! {
            biased;
            () = news.closed() => return None,
            delta = said.next() => match delta {
                Some(delta) => known.hear(delta, env.now()),
                None => return Some(()),
            },
            () = env.sleep_until(known.due()) => known.expire(env.now()),
        };
        tell(news, deltas)?;
    }
}

/// Lets some time pass. None: nobody listens.
async fn pass(
    env: &Env,
    pause: Duration,
    known: &mut Known,
    news: &mpsc::UnboundedSender<News>,
) -> Option<()> {
    tokio::select! {
        biased;
        () = news.closed() => return None,
        () = env.sleep(pause) => {}
    }
    tell(news, known.expire(env.now()))
}

fn tell(news: &mpsc::UnboundedSender<News>, deltas: Vec<EndpointDelta>) -> Option<()> {
    deltas.into_iter().try_for_each(|delta| news.send(News::Endpoint(delta)).ok())
}
