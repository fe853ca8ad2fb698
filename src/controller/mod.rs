//! The operator: watch → observe → resolve → plan → apply → report; issuance, briefs and the webhook.
