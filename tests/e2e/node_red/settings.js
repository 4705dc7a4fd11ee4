// What docs/apps/node-red.md says, word for word: its test holds the two together.
module.exports = {
    adminAuth: {
        type: "credentials",
        users: [],
        tokenHeader: "x-forwarded-user",
        tokens: async (name) => ({ username: name, permissions: "*" }),
    },
    httpAdminRoot: "/",
    httpNodeRoot: "/hooks",
    editorTheme: { logout: { redirect: "/.postern/sign-out" } },
};
