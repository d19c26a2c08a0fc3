//! Flink's REST interface, as far as trials need it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

/// How long a job that is to end may take.
const ENDING: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks until there is something, so long.
#[expect(clippy::disallowed_methods, reason = "a tool at a developer's terminal, on the machine's own clock")]
pub(crate) fn wait_for<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let begin = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if begin.elapsed() > limit {
            bail!("it did not come to pass within {} s", limit.as_secs());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

pub(crate) struct Rest {
    base: String,
    agent: ureq::Agent,
}

impl Rest {
    pub(crate) fn new(port: u16) -> Rest {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)));
        Rest { base: format!("http://127.0.0.1:{port}"), agent: config.build().into() }
    }

    fn answer(what: &str, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value> {
        let mut response = response.with_context(|| what.to_owned())?;
        let text = response.body_mut().read_to_string().with_context(|| what.to_owned())?;
        if !response.status().is_success() {
            bail!("{what}: {}: {text}", response.status());
        }
        serde_json::from_str(&text).with_context(|| format!("{what}: {text}"))
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        Rest::answer(path, self.agent.get(format!("{}{path}", self.base)).call())
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        Rest::answer(path, self.agent.post(format!("{}{path}", self.base)).send_json(body))
    }

    /// Uploads a jar; returns what it is called there.
    pub(crate) fn upload(&self, jar: &Path) -> Result<String> {
        let form =
            ureq::unversioned::multipart::Form::new().file("jarfile", jar).context("reading the jar")?;
        let answer =
            Rest::answer("/jars/upload", self.agent.post(format!("{}/jars/upload", self.base)).send(form))?;
        let name = answer["filename"].as_str().and_then(|name| name.rsplit('/').next());
        Ok(name.with_context(|| format!("uploading the jar gave {answer}"))?.to_owned())
    }

    /// Starts a job; returns its id.
    pub(crate) fn run(
        &self,
        jar: &str,
        class: &str,
        arguments: &[String],
        savepoint: Option<&str>,
    ) -> Result<String> {
        let mut body = json!({ "entryClass": class, "programArgsList": arguments });
        if let Some(savepoint) = savepoint {
            body["savepointPath"] = savepoint.into();
        }
        let answer = self.post(&format!("/jars/{jar}/run"), &body)?;
        Ok(answer["jobid"].as_str().with_context(|| format!("running the job gave {answer}"))?.to_owned())
    }

    pub(crate) fn state(&self, job: &str) -> Result<String> {
        Ok(self.get(&format!("/jobs/{job}"))?["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Returns when the job has finished; fails with its own error if it failed.
    pub(crate) fn ended(&self, job: &str) -> Result<()> {
        let state = wait_for(ENDING, || {
            let state = self.state(job).ok()?;
            matches!(state.as_str(), "FINISHED" | "FAILED" | "CANCELED").then_some(state)
        });
        match state.with_context(|| format!("waiting for the end of job {job}"))?.as_str() {
            "FINISHED" => Ok(()),
            other => Err(anyhow!("job {job} is {other}: {}", self.failure(job)?)),
        }
    }

    /// What the job failed of.
    pub(crate) fn failure(&self, job: &str) -> Result<String> {
        let exceptions = self.get(&format!("/jobs/{job}/exceptions"))?;
        let entries = exceptions["exceptionHistory"]["entries"].as_array().cloned().unwrap_or_default();
        Ok(entries.iter().filter_map(|e| e["stacktrace"].as_str()).collect::<Vec<_>>().join("\n"))
    }

    /// The vertices of a job: their names and how often all their subtasks together were started again.
    pub(crate) fn attempts(&self, job: &str) -> Result<Vec<(String, u64)>> {
        let vertices = self.get(&format!("/jobs/{job}"))?["vertices"].as_array().cloned().unwrap_or_default();
        let attempts = |vertex: &Value| -> Result<(String, u64)> {
            let (id, name) =
                (vertex["id"].as_str().unwrap_or_default(), vertex["name"].as_str().unwrap_or_default());
            let subtasks = self.get(&format!("/jobs/{job}/vertices/{id}"))?["subtasks"].as_array().cloned();
            let all = subtasks.unwrap_or_default().iter().filter_map(|s| s["attempt"].as_u64()).sum();
            Ok((name.to_owned(), all))
        };
        vertices.iter().map(attempts).collect()
    }

    /// The TaskManagers that the subtasks of a vertex are on, by a part of its name.
    pub(crate) fn places(&self, job: &str, vertex: &str) -> Result<Vec<String>> {
        let vertices = self.get(&format!("/jobs/{job}"))?["vertices"].as_array().cloned().unwrap_or_default();
        let found = vertices.iter().find(|v| v["name"].as_str().is_some_and(|name| name.contains(vertex)));
        let id = found
            .and_then(|v| v["id"].as_str())
            .with_context(|| format!("job {job} has no vertex {vertex}"))?;
        let subtasks = self.get(&format!("/jobs/{job}/vertices/{id}"))?["subtasks"].as_array().cloned();
        let places = subtasks.unwrap_or_default();
        Ok(places.iter().filter_map(|s| s["taskmanager-id"].as_str().map(str::to_owned)).collect())
    }

    /// How many checkpoints are complete, and how long the longest took.
    pub(crate) fn checkpoints(&self, job: &str) -> Result<(u64, Duration)> {
        let all = self.get(&format!("/jobs/{job}/checkpoints"))?;
        let complete = all["counts"]["completed"].as_u64().unwrap_or_default();
        let longest = all["summary"]["end_to_end_duration"]["max"].as_u64().unwrap_or_default();
        Ok((complete, Duration::from_millis(longest)))
    }

    pub(crate) fn cancel(&self, job: &str) -> Result<()> {
        let request = self.agent.patch(format!("{}/jobs/{job}?mode=cancel", self.base));
        let response = request.send_empty().context("cancelling")?;
        if !response.status().is_success() {
            bail!("cancelling job {job}: {}", response.status());
        }
        wait_for(ENDING, || (self.state(job).ok()? == "CANCELED").then_some(()))
            .context("waiting until it is cancelled")
    }

    /// Stops a job with a savepoint; returns where that is.
    pub(crate) fn stop(&self, job: &str, folder: &Path) -> Result<String> {
        let body = json!({ "targetDirectory": format!("file://{}", folder.display()), "drain": false });
        let trigger = self.post(&format!("/jobs/{job}/stop"), &body)?;
        let trigger = trigger["request-id"].as_str().unwrap_or_default().to_owned();
        let done = wait_for(ENDING, || {
            let answer = self.get(&format!("/jobs/{job}/savepoints/{trigger}")).ok()?;
            (answer["status"]["id"] == "COMPLETED").then_some(answer)
        })
        .context("waiting for the savepoint")?;
        let location = done["operation"]["location"].as_str();
        Ok(location.with_context(|| format!("the savepoint failed: {done}"))?.to_owned())
    }
}
