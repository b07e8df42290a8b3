//! A record that is not the source's word but a person's counts only with the controller's signature, which
//! covers whose word it is.

use ferry_proto::Fault;
use ferry_proto::command::CommitRecord;

use crate::work::Job;

/// Whether `record` is of this move, and the controller has signed that it is forced.
///
/// # Errors
/// Of class Fenced if it is of another move, Permanent if it is not signed.
pub fn check(job: &Job, record: &CommitRecord) -> Result<(), Fault> {
    let of = &job.of;
    let said = (record.job, &record.account, &record.source, &record.target, record.epoch);
    if said != (of.job, &of.account, &of.source, &of.target, of.epoch.next()) {
        return Err(Fault::fenced(format!(
            "the record of epoch {} is not of this move of account {}",
            record.epoch, of.account
        )));
    }
    let signed =
        job.grant.as_ref().map(|g| g.verify_signature(&job.agent.grant_key)).transpose()?;
    let signed = signed.filter(|grant| {
        let granted = (grant.job, &grant.account, &grant.source, &grant.target, grant.epoch);
        granted == (of.job, &of.account, &of.source, &of.target, of.epoch)
    });
    match (&record.forced, signed.and_then(|grant| grant.forced)) {
        (Some(said), Some(signed)) if *said == signed => Ok(()),
        _ => Err(Fault::permanent(format!(
            "that account {} is opened by force is not signed by the controller",
            of.account
        ))),
    }
}
