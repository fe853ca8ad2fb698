//! YAML of servers as a user would write it, short.

/// A ServiceAccount, a Deployment of one pod, and a TrustedServer over it. `command` is a shell line that runs in
/// container `app`; `ports` is the YAML list of the server's ports; `more` is further YAML of its spec, two spaces in.
/// The pod is Ready when the application listens on its first port.
pub(crate) fn server(name: &str, command: &str, ports: &str, more: &str) -> String {
    let number =
        |word: &str| ports.split(word).nth(1)?.split(|c: char| !c.is_ascii_digit()).find(|text| !text.is_empty());
    let probe = number("targetPort:").or_else(|| number("port:")).map_or_else(String::new, |port| {
        format!("\n        readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}")
    });
    // Declared first: a pod that is there before its server is declared has no sidecar.
    let (declared, deployment) = (declared(name, ports, more), deployment(name, name, command));
    format!("{}\n---\n{declared}\n---\n{deployment}{probe}", account(name))
}

/// The TrustedServer alone.
pub(crate) fn declared(name: &str, ports: &str, more: &str) -> String {
    format!(
        "apiVersion: entente.dev/v1alpha1
kind: TrustedServer
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  serviceAccountName: {name}
  ports: {ports}
{more}"
    )
}

/// A FederationPartner that may speak for `NAME.example`, with these roots; `more` is further YAML of its spec, two spaces
/// in.
pub(crate) fn partner(name: &str, more: &str, roots: &str) -> String {
    let roots = roots.replace('\n', "\n      ");
    format!(
        "apiVersion: entente.dev/v1alpha1
kind: FederationPartner
metadata: {{name: {name}}}
spec:
  domains: [{name}.example]
{more}
  trust:
    caBundle: |
      {roots}"
    )
}

/// A ServiceAccount.
pub(crate) fn account(name: &str) -> String {
    format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}")
}

/// A Deployment of one pod that runs a shell line.
pub(crate) fn deployment(name: &str, account: &str, command: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      serviceAccountName: {account}
      terminationGracePeriodSeconds: 2
      containers:
      - name: app
        image: registry.local/tools:dev
        imagePullPolicy: IfNotPresent
        command: [sh, -c, {command:?}]"
    )
}

/// A Service over the pods of a server.
pub(crate) fn service(name: &str, port: u16, target: u16) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: {port}, targetPort: {target}}}]}}"
    )
}

/// A bare pod that waits.
pub(crate) fn idle_pod(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: app, image: 'registry.local/tools:dev', imagePullPolicy: IfNotPresent, command: [sleep, infinity]}}"
    )
}

/// An nginx that answers every request on `port` with `text`.
pub(crate) fn web(port: u16, text: &str) -> String {
    let config = format!(
        "daemon off; pid /tmp/pid; error_log stderr; events {{}} http {{ access_log off; client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c; uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e; server {{ listen {port}; location / {{ return 200 '{text}\\n'; }} }} }}"
    );
    format!("echo \"{config}\" > /tmp/n.conf; exec nginx -c /tmp/n.conf")
}

/// Waits for ever.
pub(crate) const IDLE: &str = "exec sleep infinity";
